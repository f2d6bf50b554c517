"""How a run trains, as frozen dataclasses: durations, augmentation, mixup, optimizer, loop."""

import dataclasses

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
        rotate: three-axis modalities turned together by one random rotation a sample.
        rotation_degrees: largest angle of that rotation; 180 covers every orientation.
        jitter: standard deviation of white noise, in normalised units.
        scale: standard deviation of a factor per sample and modality, around 1.
        mirror_polar, mirror_axial: three-axis modalities of which every second sample is reflected
            in its first axis, as if the sensor were worn on the other side: the sign of that axis
            changes for polar vectors (acceleration), that of the other two for axial ones (rates
            of rotation).
        hide: chance that a modality is masked in a sample; one that is there always stays.
        gap: longest share of the time steps that is masked in one stretch, modality by modality.
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
        mode: where samples may be blended: `any` block, `within` the modalities' own blocks,
            `fused` (after them), or `none`.
        alpha: of the Beta distribution that shares are drawn from.
        warmup: trained without mixup at first.
        groups: parts of the batch that a sample's partner is drawn in; must divide the batch, and
            be a multiple of the devices times `accumulate`, whose number it makes irrelevant.
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
        schedule: `constant`, `cosine` (to zero at the end of training), or `plateau`
            (times `plateau_factor` after `plateau_patience` validations without improvement).
        warmup: linear rise from zero, in front of any schedule.
        clip_norm: largest global norm of the gradient; 0 switches clipping off.
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

    def __post_init__(self):
        check_choice("optimizer.schedule", self.schedule, ("constant", "cosine", "plateau"))
        check_at_least("optimizer", self, 0, "learning_rate", "weight_decay", "clip_norm")
        check_at_least("optimizer", self, 0, "plateau_patience")
        check_fraction("optimizer", self, "b1", "b2", "plateau_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Attributes:
        duration: how long to train.
        batch_size: samples per optimizer step over all devices.
        accumulate: micro-batches a step is computed in, one after the other.
        label_smoothing: share of the target spread evenly over the classes.
        seed: of parameters, order, augmentation and dropout.
        eval_every, checkpoint_every: how often to validate and to save.
        best_after: the best checkpoint is not chosen before this.
        best_metric: Validation metric that chooses the best checkpoint, one that the task logs.
        log_every: steps between two records of training metrics.
        keep: newest checkpoints kept beside the best.
        data_parallel, fsdp_parallel: the device mesh; -1 takes what is left.
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
    log_every: int = 10
    keep: int = 2
    data_parallel: int = -1
    fsdp_parallel: int = 1

    def __post_init__(self):
        check_at_least("train", self, 1, "batch_size", "accumulate", "log_every", "keep")
        check_at_least("train", self, 0, "seed")
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
