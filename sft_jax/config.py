"""What a run is, as frozen dataclasses: the one place where defaults live and are checked."""

import dataclasses

from sft_jax.data_config import DataConfig
from sft_jax.types import ConfigError, ModalitySpec, check_at_least, check_choice, check_fraction


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


# Which settings of `BaselineConfig` a model reads, and which models take the options below.
BASELINE_SETTINGS = {
    "sft": (),
    "unimodal": ("modality", "window"),
    "late": ("duplicate_cls",),
    "concat": ("window",),
    "mbt": ("num_bottlenecks", "exchange", "fuse_at"),
    "mult": (),
}
# Of dense attention.
IMPLEMENTATIONS = ("auto", "xla", "streamed", "pallas")
FIXED_ATTENTION_MODELS = ("sft", "unimodal", "late", "mbt")
MIXUP_MODELS = ("sft",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What the models that SFT is compared with need beside widths and depths.

    Attributes:
        modality: the one that `unimodal` uses; may be empty where there is only one.
        window: of the max pool of `unimodal` and `concat`; 0 takes the (first) modality's.
        duplicate_cls: second copy of CLS after the first block of `late`, as in the authors' code.
        num_bottlenecks: tokens that the modalities of `mbt` share.
        exchange: `sequential` or `average` (see `BottleneckLayer`).
        fuse_at: first layer of `mbt` with bottlenecks; -1 is `num_pre_layers + 1`, as in the
            authors' code.
    """

    modality: str = ""
    window: int = 0
    duplicate_cls: bool = False
    num_bottlenecks: int = 4
    exchange: str = "sequential"
    fuse_at: int = -1

    def __post_init__(self):
        check_choice("model.baseline.exchange", self.exchange, ("sequential", "average"))
        check_at_least("model.baseline", self, 0, "window")
        check_at_least("model.baseline", self, 1, "num_bottlenecks")
        check_at_least("model.baseline", self, -1, "fuse_at")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. `num_classes=0` takes the number of classes from the data.

    Attributes:
        attention: `dense`, or `fixed` (arXiv 1904.10509) where a modality's own tokens attend to
            each other: each to its block of `stride`, and the last `expressivity` of every block.
        implementation: of dense attention (see `models/attention.py`).
        remat: what a backward pass finds of an encoder block and of a sparse-pooling block: `none`
            recomputes nothing, `dots` all but products with parameters, `block` all but the
            block's input.
        baseline: settings of the models other than `sft`.
    """

    name: str = "sft"
    preset: str = "paper"
    num_classes: int = 0
    embed_dim: int = 40
    num_heads: int = 5
    num_pre_layers: int = 1
    num_post_layers: int = 11
    dropout: float = 0.0
    attention: str = "dense"
    stride: int = 32
    expressivity: int = 8
    implementation: str = "auto"
    dtype: str = "float32"
    remat: str = "none"
    baseline: BaselineConfig = BaselineConfig()

    def __post_init__(self):
        check_choice("model.name", self.name, tuple(BASELINE_SETTINGS))
        check_choice("model.preset", self.preset, tuple(PRESETS))
        check_choice("model.implementation", self.implementation, IMPLEMENTATIONS)
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("model.remat", self.remat, ("none", "dots", "block"))
        check_choice("model.attention", self.attention, ("dense", "fixed"))
        check_at_least("model", self, 1, "embed_dim", "num_heads", "stride", "expressivity")
        check_at_least("model", self, 0, "num_classes", "num_pre_layers", "num_post_layers")
        if not 0 <= self.dropout <= 0.9:
            raise ConfigError(f"model.dropout: given {self.dropout}, expected between 0 and 0.9")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads: given {self.num_heads} for embed_dim {self.embed_dim}, expected "
                f"a divisor of {self.embed_dim}; change one of the two"
            )
        self._check_attention()
        self._check_baseline()

    def _check_attention(self):
        if self.attention == "dense":
            for name in ("stride", "expressivity"):
                if getattr(self, name) != getattr(ModelConfig, name):
                    raise ConfigError(
                        f"model.{name}: given {getattr(self, name)} with attention 'dense', which "
                        "does not use it; set attention='fixed' or leave it out"
                    )
        elif self.name not in FIXED_ATTENTION_MODELS or self.baseline.duplicate_cls:
            raise ConfigError(
                f"model.attention: given 'fixed' for model {self.name!r} (duplicate_cls "
                f"{self.baseline.duplicate_cls}), expected 'dense', since its sequences are not "
                f"one CLS and one modality's tokens; 'fixed' works with "
                f"{', '.join(FIXED_ATTENTION_MODELS)} without duplicate_cls"
            )

    def _check_baseline(self):
        depth = self.num_pre_layers + self.num_post_layers
        if self.baseline.fuse_at > depth:
            raise ConfigError(
                f"model.baseline.fuse_at: given {self.baseline.fuse_at} for {depth} layers, "
                f"expected at most {depth}, which fuses nothing; choose a layer from 0 on"
            )
        for field in dataclasses.fields(self.baseline):
            value = getattr(self.baseline, field.name)
            if value != field.default and field.name not in BASELINE_SETTINGS[self.name]:
                used = ", ".join(BASELINE_SETTINGS[self.name]) or "none"
                raise ConfigError(
                    f"model.baseline.{field.name}: given {value!r}, which model {self.name!r} does "
                    f"not use, expected {field.default!r}; it uses {used}"
                )

    @property
    def bottleneck_start(self) -> int:
        """First layer of `mbt` with bottlenecks, at most the number of layers."""
        # The authors' code fuses in the layers behind the one with index num_pre_layers.
        start = self.num_pre_layers + 1 if self.baseline.fuse_at < 0 else self.baseline.fuse_at
        return min(start, self.num_pre_layers + self.num_post_layers)

    @property
    def style(self) -> BlockStyle:
        """The preset's choices."""
        return PRESETS[self.preset]


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
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = AugmentConfig()
    mixup: MixupConfig = MixupConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        names = [spec.name for spec in self.modalities]
        if len(names) > 8 or len(set(names)) != len(names):
            raise ConfigError(f"modalities: given {names}, expected up to 8 different names")
        self._check_mixup()
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

    def _check_mixup(self):
        mixup, model = self.mixup, self.model
        if mixup.mode == "none":
            return
        if model.name not in MIXUP_MODELS:
            raise ConfigError(
                f"mixup.mode: given {mixup.mode!r} for model {model.name!r}, expected 'none'; "
                f"mixup is defined for {', '.join(MIXUP_MODELS)}"
            )
        depths = {"within": model.num_pre_layers, "fused": model.num_post_layers}
        depths["any"] = sum(depths.values())
        if not depths[mixup.mode]:
            raise ConfigError(
                f"mixup.mode: given {mixup.mode!r} for num_pre_layers {model.num_pre_layers} and "
                f"num_post_layers {model.num_post_layers}, expected a block to blend after"
            )
        if self.train.batch_size % mixup.groups or mixup.groups % self.train.accumulate:
            raise ConfigError(
                f"mixup.groups: given {mixup.groups} for batch_size {self.train.batch_size} and "
                f"accumulate {self.train.accumulate}, expected a divisor of the batch size that is "
                "a multiple of accumulate (and of the devices)"
            )
        if mixup.groups == self.train.batch_size:
            raise ConfigError(
                f"mixup.groups: given {mixup.groups} for batch_size {self.train.batch_size}, "
                "expected groups of at least 2 samples, since a sample alone has no partner; lower "
                "it"
            )
