"""What a run is, as frozen dataclasses: the one place where defaults live and are checked."""

import dataclasses

from sft_jax.config.data import DataConfig
from sft_jax.config.task import TaskConfig
from sft_jax.config.training import AugmentConfig, MixupConfig, OptimizerConfig, TrainConfig
from sft_jax.config.training import Duration as Duration
from sft_jax.types import ConfigError, ModalitySpec, check_at_least, check_choice


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
    """The network.

    Attributes:
        name: Model, a key of `BASELINE_SETTINGS`.
        preset: Key of `PRESETS`.
        num_classes: Number of classes; 0 takes it from the data.
        embed_dim: Embedding width `d`.
        num_heads: Number of attention heads `h`, a divisor of `embed_dim`.
        num_pre_layers: Number of encoder blocks before fusion.
        num_post_layers: Number of encoder blocks after fusion.
        dropout: Dropout rate of the residual blocks.
        attention: `dense`, or `fixed` (arXiv 1904.10509) where a modality's own tokens attend to
            each other: each to its block of `stride`, and the last `expressivity` of every block.
        stride: Block length of fixed attention.
        expressivity: Number of tokens at the end of every block that fixed attention shares.
        implementation: Implementation of dense attention: `auto`, `xla`, `streamed` or `pallas`.
        dtype: Data type of the computation; parameters are float32.
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
class Config:
    """One run.

    Attributes:
        modalities: Modalities in order; where empty, those of the data, pooled to an eighth.
        task: What is predicted.
        model: Network.
        data: Source of the samples.
        augment: Augmentation.
        mixup: Multimodal manifold mixup.
        optimizer: Optimizer and learning-rate schedule.
        train: Training loop.
    """

    modalities: tuple[ModalitySpec, ...] = ()
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    model: ModelConfig = ModelConfig()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    mixup: MixupConfig = dataclasses.field(default_factory=MixupConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self):
        names = [spec.name for spec in self.modalities]
        if len(names) > 8 or len(set(names)) != len(names):
            raise ConfigError(f"modalities: given {names}, expected up to 8 different names")
        self._check_mixup()
        self._check_sensors()

    def _check_sensors(self):
        augment = self.augment
        turned = {
            "rotate": augment.rotate,
            "mirror_polar": augment.mirror_polar,
            "mirror_axial": augment.mirror_axial,
        }
        for setting, given in turned.items():
            if given and self.data.normalization == "channel":
                raise ConfigError(
                    f"augment.{setting}: given with data.normalization 'channel', expected 'rms' "
                    "or 'none', since moving and scaling axes apart bends the frame that is to be "
                    "turned"
                )
            triples = [spec.name for spec in self.modalities if spec.feature_dim == 3]
            # Without modalities the data will say which there are; this is checked again then.
            for name in given if self.modalities else ():
                spec = next((spec for spec in self.modalities if spec.name == name), None)
                if spec is None or spec.feature_dim != 3 or spec.tokenizer == "token":
                    raise ConfigError(
                        f"augment.{setting}: given {name!r}, expected a modality with three "
                        f"features, one of {triples}"
                    )
        if bool(augment.rotate) != bool(augment.rotation_degrees):
            raise ConfigError(
                f"augment.rotation_degrees: given {augment.rotation_degrees} with rotate "
                f"{augment.rotate}, expected both or neither; set the other one too"
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
