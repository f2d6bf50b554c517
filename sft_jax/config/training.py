"""Settings of training, as frozen dataclasses: durations, augmentation, mixup, optimizer, loop."""

import dataclasses
import math

from sft_jax.config.checks import check_at_least, check_choice, check_fraction
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training, in optimizer steps or in passes over the training split.

    Written in configurations as text: `"500 steps"`, `"20 epochs"`, `"0.5 epochs"`.
    """

    value: float
    unit: str

    def __post_init__(self):
        whole = self.unit != "steps" or float(self.value).is_integer()
        if self.unit not in ("steps", "epochs") or not 0 <= self.value < 1e12 or not whole:
            raise ConfigError(
                f"duration: given {self.value!r} {self.unit!r}, expected a whole number of 'steps' "
                "or a number of 'epochs', from 0 to below 1e12"
            )

    @classmethod
    def parse(cls, text: object, where: str = "duration") -> "Duration":
        """Reads `"<number> steps|epochs"`; raises `ConfigError` on anything else."""
        words = text.split() if isinstance(text, str) else []
        try:
            value, unit = words
            return cls(float(value), {"step": "steps", "epoch": "epochs"}.get(unit, unit))
        except ValueError:
            raise ConfigError(
                f"{where}: given {text!r}, expected '<whole number> steps' or '<number> epochs'"
            ) from None

    def to_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps, rounded to the nearest, at least one unless the value is zero."""
        if self.unit == "steps":
            return int(self.value)
        return max(1, round(self.value * steps_per_epoch)) if self.value else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of sensors inside the compiled step; every default leaves the data alone.

    Attributes:
        rotate: Three-axis modalities that are turned together by one random rotation per sample.
        rotation_degrees: Largest angle of that rotation; 180 covers every orientation.
        jitter: Standard deviation of added white noise, in normalised units.
        scale: Standard deviation of a random factor around 1 per sample and modality.
        mirror_polar: Three-axis modalities of polar vectors (acceleration), reflected in the first
            axis in every second sample, as if the sensor were worn on the other side.
        mirror_axial: Three-axis modalities of axial vectors (rates of rotation), reflected as those
            of `mirror_polar` are.
        hide: Probability that a modality of a sample is masked; at least one always stays.
        gap: Largest share of a modality's time steps that is masked in one stretch.
    """

    rotate: tuple[str, ...] = ()
    rotation_degrees: float = 0.0
    jitter: float = 0.0
    scale: float = 0.0
    mirror_polar: tuple[str, ...] = ()
    mirror_axial: tuple[str, ...] = ()
    hide: float = 0.0
    gap: float = 0.0

    def __post_init__(self):
        check_at_least("augment", self, 0, "rotation_degrees", "jitter", "scale")
        check_fraction("augment", self, "hide", "gap")
        if both := set(self.mirror_polar) & set(self.mirror_axial):
            raise ConfigError(
                f"augment.mirror_polar, augment.mirror_axial: given {', '.join(sorted(both))} in "
                "both, expected each in one, by what its vectors are"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """Multimodal manifold mixup (arXiv 2111.11992, section 3.4) of model `sft`.

    Attributes:
        mode: Blocks after which samples may be blended: `any`, `within` the modalities' own,
            `fused` (those after fusion), or `none`.
        alpha: Parameter of the Beta distribution that the shares of a blend are drawn from.
        warmup: Duration at the beginning that is trained without mixup.
        groups: Number of parts of a batch within which partners are drawn; it must divide the batch
            size and be a multiple of the number of devices times `accumulate`, so that results do
            not depend on these two.
    """

    mode: str = "none"
    alpha: float = 0.3
    warmup: Duration = Duration(0.0, "steps")
    groups: int = 8

    def __post_init__(self):
        check_choice("mixup.mode", self.mode, ("none", "any", "within", "fused"))
        check_at_least("mixup", self, 1e-3, "alpha")
        check_at_least("mixup", self, 1, "groups")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with global-norm clipping, and how its learning rate moves.

    Attributes:
        learning_rate: Learning rate after warm-up.
        weight_decay: Decoupled weight decay.
        b1: Decay rate of the first moment's average.
        b2: Decay rate of the second moment's average.
        clip_norm: Largest global norm of the gradient; 0 switches clipping off.
        schedule: `constant`, `cosine` (to zero at the end of training), or `plateau` (reduced when
            validation stops improving).
        warmup: Duration of a linear rise from zero, before any schedule.
        plateau_factor: Factor of the learning rate at each reduction of the schedule `plateau`.
        plateau_patience: Number of validations without improvement before a reduction.
        rates: Factors on the learning rate of some parameters, each as `"<pattern>=<factor>"` with
            a pattern as in `train.freeze`; the first one that matches a parameter counts.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 0.8
    schedule: str = "constant"
    warmup: Duration = Duration(0.0, "steps")
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    rates: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice("optimizer.schedule", self.schedule, ("constant", "cosine", "plateau"))
        check_at_least("optimizer", self, 0, "learning_rate", "weight_decay", "clip_norm")
        check_at_least("optimizer", self, 0, "plateau_patience")
        check_fraction("optimizer", self, "b1", "b2", "plateau_factor")
        self.rate_factors  # noqa: B018 - checks the texts

    @property
    def rate_factors(self) -> tuple[tuple[str, float], ...]:
        """The patterns of `rates` with their factors."""
        return tuple(map(_parse_rate, self.rates))


def _parse_rate(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not 0 <= value < math.inf:
        raise ConfigError(
            f"optimizer.rates: given {text!r}, expected '<pattern>=<factor>' with a number of at "
            "least 0, such as 'head/*=10'"
        )
    return pattern, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
        duration: Length of training.
        batch_size: Number of samples per optimizer step over all devices.
        accumulate: Number of micro-batches that a step is computed in, one after the other.
        label_smoothing: Share of the target that is spread evenly over the classes.
        seed: Seed for parameters, order of samples, augmentation, dropout and mixup.
        eval_every: Interval between validations.
        checkpoint_every: Interval between checkpoints.
        best_after: Duration after which the best checkpoint may be chosen.
        best_metric: Validation metric that chooses the best checkpoint, one that the task logs.
        patience: Number of successive validations without a better `best_metric`, counted from
            `best_after`, after which training stops; 0 never stops early.
        freeze: Patterns of parameters that are not trained, such as `encoder_audio/*`, matched as
            file names are with the parameter's path `a/b/c`; `*` matches slashes as well.
        log_every: Number of steps between two records of training metrics.
        keep: Number of latest checkpoints that are kept in addition to the best one.
        data_parallel: Size of the mesh axis `data`; -1 takes the devices that are left.
        fsdp_parallel: Size of the mesh axis `fsdp`, over which parameters are split; -1 takes the
            devices that are left.
    """

    duration: Duration = Duration(20.0, "epochs")
    batch_size: int = 24
    accumulate: int = 1
    label_smoothing: float = 0.0
    seed: int = 0
    eval_every: Duration = Duration(1.0, "epochs")
    checkpoint_every: Duration = Duration(1.0, "epochs")
    best_after: Duration = Duration(0.0, "steps")
    best_metric: str = "loss"
    patience: int = 0
    freeze: tuple[str, ...] = ()
    log_every: int = 10
    keep: int = 2
    data_parallel: int = -1
    fsdp_parallel: int = 1

    def __post_init__(self):
        check_at_least("train", self, 1, "batch_size", "accumulate", "log_every", "keep")
        check_at_least("train", self, 0, "seed", "patience")
        check_fraction("train", self, "label_smoothing")
        for name in ("data_parallel", "fsdp_parallel"):
            if getattr(self, name) == 0 or getattr(self, name) < -1:
                raise ConfigError(
                    f"train.{name}: given {getattr(self, name)}, expected at least 1, or -1 for "
                    "the devices that are left"
                )
        for name in ("duration", "eval_every", "checkpoint_every"):
            if getattr(self, name).value == 0:
                raise ConfigError(f"train.{name}: given 0, expected a positive duration")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.accumulate: given {self.accumulate} for batch_size {self.batch_size}, "
                f"expected a divisor of {self.batch_size}"
            )
