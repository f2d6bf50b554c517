"""What a run is, as frozen dataclasses: the one place where defaults live and are checked."""

import dataclasses

from sft_jax.types import (
    ConfigError,
    ModalitySpec,
    check_at_least,
    check_choice,
    check_fraction,
)


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
class BlockStyle:
    """What the two presets differ in.

    Attributes:
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        activation: `relu` or `gelu`.
        affine_attention_norm: whether the norm before attention has a scale and a bias.
        embedding_std: standard deviation CLS and positions are drawn with.
    """

    mlp_ratio: float
    activation: str
    affine_attention_norm: bool
    embedding_std: float


PRESETS = {
    # arXiv 2111.11992 as its authors ran it.
    "paper": BlockStyle(
        mlp_ratio=1.0, activation="relu", affine_attention_norm=False, embedding_std=1.0
    ),
    # What pre-norm transformers have settled on since (e.g. arXiv 2010.11929).
    "modern": BlockStyle(
        mlp_ratio=4.0, activation="gelu", affine_attention_norm=True, embedding_std=0.02
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. `num_classes=0` takes the number of classes from the data."""

    name: str = "sft"
    preset: str = "paper"
    num_classes: int = 0
    embed_dim: int = 40
    num_heads: int = 5
    num_pre_layers: int = 1
    num_post_layers: int = 11
    dropout: float = 0.0
    implementation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("model.preset", self.preset, tuple(PRESETS))
        check_choice("model.implementation", self.implementation, ("auto", "xla", "streamed"))
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        check_at_least("model", self, 1, "embed_dim", "num_heads")
        check_at_least("model", self, 0, "num_classes", "num_pre_layers", "num_post_layers")
        if not 0 <= self.dropout <= 0.9:
            raise ConfigError(f"model.dropout: given {self.dropout}, expected between 0 and 0.9")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads: given {self.num_heads} for embed_dim {self.embed_dim}, expected "
                f"a divisor of {self.embed_dim}; change one of the two"
            )

    @property
    def style(self) -> BlockStyle:
        """The preset's choices."""
        return PRESETS[self.preset]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmartwatchOptions:
    """Shoulder exercises seen by a smartwatch (arXiv 1802.01489); window and step in 50 Hz samples.

    `test_subjects` and `valid_subjects` of the ten are drawn by `split_seed`, before windowing.
    """

    window: int = 250
    step: int = 50
    test_subjects: int = 2
    valid_subjects: int = 2
    split_seed: int = 0

    def __post_init__(self):
        check_at_least("data.options", self, 1, "window", "step", "test_subjects")
        check_at_least("data.options", self, 0, "valid_subjects", "split_seed")
        if self.test_subjects + self.valid_subjects > 9:
            raise ConfigError(
                f"data.options: given {self.test_subjects} test and {self.valid_subjects} "
                "validation subjects, expected at most 9 together, since one of 10 must train"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """Learnable random sequences: each class is a motif hidden in noise.

    Attributes:
        lengths: time steps of each modality; as many modalities as entries, named `m0`, `m1`, ...
        feature_dims: features of each modality.
        num_classes: classes, drawn uniformly.
        num_train, num_valid, num_test: samples of each split.
        min_length: shortest sequence as a share of its length; 1.0 keeps every sequence full.
        missing_rate: chance that a modality is absent from a sample; one always stays.
        noise: standard deviation of the noise around the motif, which has unit size.
        seed: everything is drawn from it.
    """

    lengths: tuple[int, ...] = (48, 96)
    feature_dims: tuple[int, ...] = (6, 4)
    num_classes: int = 4
    num_train: int = 512
    num_valid: int = 128
    num_test: int = 128
    min_length: float = 0.5
    missing_rate: float = 0.1
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if not 1 <= len(self.lengths) <= 8 or len(self.lengths) != len(self.feature_dims):
            raise ConfigError(
                f"data.options: given {len(self.lengths)} lengths and {len(self.feature_dims)} "
                "feature_dims, expected one of each for 1 to 8 modalities"
            )
        if min(self.lengths) < 1 or min(self.feature_dims) < 1:
            raise ConfigError(
                f"data.options: given lengths {self.lengths} and feature_dims {self.feature_dims}, "
                "expected every entry to be at least 1"
            )
        check_at_least("data.options", self, 2, "num_classes")
        check_at_least("data.options", self, 1, "num_train")
        check_at_least("data.options", self, 0, "num_valid", "num_test", "noise", "seed")
        check_fraction("data.options", self, "min_length", "missing_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArraysOptions:
    """A user's own arrays: an `.npz` file or a directory of `.npy`, one entry per modality.

    Attributes:
        path: the file or directory; entries `<m>`, `label`, and optionally `mask/<m>` or
            `length/<m>`, `id`, `group` (samples of one group stay in one split).
        valid_fraction, test_fraction: shares of the groups (or samples) held out, seeded.
        split_seed: draws the split.
        class_names: names of the classes in order; numbers where empty.
    """

    path: str = ""
    valid_fraction: float = 0.2
    test_fraction: float = 0.2
    split_seed: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        check_fraction("data.options", self, "valid_fraction", "test_fraction")
        check_at_least("data.options", self, 0, "split_seed")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.options: given valid_fraction {self.valid_fraction} and test_fraction "
                f"{self.test_fraction}, expected a sum below 1 so that something is left to train"
            )


OPTIONS = {
    "smartwatch_exercises": SmartwatchOptions,
    "synthetic": SyntheticOptions,
    "arrays": ArraysOptions,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from.

    Attributes:
        source: key of `OPTIONS`.
        options: the source's own settings.
        data_dir: where prepared ArrayRecord files are kept; `~` is expanded.
        normalization: statistics of the training split; `channel` centres and scales every
            feature, `rms` divides a modality by one number and keeps directions in space, `none`.
        num_threads, prefetch: reading threads and batches kept ready by the pipeline.
    """

    source: str = "synthetic"
    options: SmartwatchOptions | SyntheticOptions | ArraysOptions = SyntheticOptions()
    data_dir: str = "~/.cache/sft_jax"
    normalization: str = "channel"
    num_threads: int = 4
    prefetch: int = 8

    def __post_init__(self):
        check_choice("data.source", self.source, tuple(OPTIONS))
        check_choice("data.normalization", self.normalization, ("channel", "rms", "none"))
        check_at_least("data", self, 0, "num_threads")
        check_at_least("data", self, 1, "prefetch")
        if not isinstance(self.options, OPTIONS[self.source]):
            raise ConfigError(
                f"data.options: given {type(self.options).__name__} for source {self.source!r}, "
                f"expected {OPTIONS[self.source].__name__}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Sensor augmentation inside the compiled step; every default leaves the data alone.

    Attributes:
        rotate: three-axis modalities turned together by one random rotation a sample.
        rotation_degrees: largest angle of that rotation; 180 covers every orientation.
        jitter: standard deviation of white noise, in normalised units.
        scale: standard deviation of a factor per sample and modality, around 1.
    """

    rotate: tuple[str, ...] = ()
    rotation_degrees: float = 0.0
    jitter: float = 0.0
    scale: float = 0.0

    def __post_init__(self):
        check_at_least("augment", self, 0, "rotation_degrees", "jitter", "scale")


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
        best_metric: validation metric that decides; losses are minimised, the others maximised.
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
        check_choice("train.best_metric", self.best_metric, ("loss", "top1"))
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. An empty `modalities` takes them from the data, pooled to an eighth."""

    modalities: tuple[ModalitySpec, ...] = ()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        names = [spec.name for spec in self.modalities]
        if len(names) > 8 or len(set(names)) != len(names):
            raise ConfigError(f"modalities: given {names}, expected up to 8 different names")
        if self.augment.rotate and self.data.normalization == "channel":
            raise ConfigError(
                "augment.rotate: given with data.normalization 'channel', expected 'rms' or "
                "'none', since scaling axes apart bends the frame that is to be turned"
            )
        if bool(self.augment.rotate) != bool(self.augment.rotation_degrees):
            raise ConfigError(
                f"augment.rotation_degrees: given {self.augment.rotation_degrees} with rotate "
                f"{self.augment.rotate}, expected both or neither; set the other one too"
            )
        # Without modalities the data will say which there are; this is checked again then.
        for name in self.augment.rotate if self.modalities else ():
            spec = next((spec for spec in self.modalities if spec.name == name), None)
            if spec is None or spec.feature_dim != 3 or spec.tokenizer == "token":
                raise ConfigError(
                    f"augment.rotate: given {name!r}, expected a modality with three features, one "
                    f"of {[s.name for s in self.modalities if s.feature_dim == 3]}"
                )
