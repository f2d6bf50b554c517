"""Settings of the network and of the models that it is compared with."""

import dataclasses

from sft_jax.config.checks import check_at_least, check_choice
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """The choices that differ between presets.

    Attributes:
        mlp_ratio: Hidden width of the MLP divided by `embed_dim`.
        activation: `relu` or `gelu`.
        affine_attention_norm: Whether the layer norm before attention has a scale and a bias.
        embedding_std: Standard deviation of the initial CLS and position embeddings.
    """

    mlp_ratio: float
    activation: str
    affine_attention_norm: bool
    embedding_std: float


PRESETS = {
    # As in the code of the authors of arXiv 2111.11992.
    "paper": BlockStyle(
        mlp_ratio=1.0, activation="relu", affine_attention_norm=False, embedding_std=1.0
    ),
    # Common choices of pre-norm transformers, as in arXiv 2010.11929.
    "modern": BlockStyle(
        mlp_ratio=4.0, activation="gelu", affine_attention_norm=True, embedding_std=0.02
    ),
}
# Implementations of dense attention.
IMPLEMENTATIONS = ("auto", "xla", "streamed", "pallas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a model without settings of its own (`sft` and `mult`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnimodalOptions:
    """Options of the model that uses one modality.

    Attributes:
        modality: Name of the modality; may be empty if there is only one.
        window: Window of the max pool; 0 takes the modality's window.
    """

    modality: str = ""
    window: int = 0

    def __post_init__(self):
        check_at_least("model.options", self, 0, "window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateOptions:
    """Options of late fusion.

    Attributes:
        duplicate_cls: Whether a second copy of CLS is inserted after the first block, as in the
            code of the paper's authors.
    """

    duplicate_cls: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConcatOptions:
    """Options of the model that concatenates the tokens of all modalities.

    Attributes:
        window: Window of the max pool; 0 takes the first modality's window.
    """

    window: int = 0

    def __post_init__(self):
        check_at_least("model.options", self, 0, "window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MbtOptions:
    """Options of the multimodal bottleneck transformer.

    Attributes:
        num_bottlenecks: Number of bottleneck tokens that the modalities share.
        exchange: `sequential` or `average` (see `BottleneckLayer`).
        fuse_at: Index of the first layer with bottlenecks; -1 means `num_pre_layers + 1`, as in the
            code of the authors of arXiv 2111.11992.
    """

    num_bottlenecks: int = 4
    exchange: str = "sequential"
    fuse_at: int = -1

    def __post_init__(self):
        check_choice("model.options.exchange", self.exchange, ("sequential", "average"))
        check_at_least("model.options", self, 1, "num_bottlenecks")
        check_at_least("model.options", self, -1, "fuse_at")

    def num_unfused_layers(self, num_pre_layers: int, num_layers: int) -> int:
        """Number of layers before the first one with bottlenecks, at most `num_layers`."""
        return min(num_pre_layers + 1 if self.fuse_at < 0 else self.fuse_at, num_layers)


ModelOptions = NoOptions | UnimodalOptions | LateOptions | ConcatOptions | MbtOptions
OPTIONS: dict[str, type[ModelOptions]] = {
    "sft": NoOptions,
    "unimodal": UnimodalOptions,
    "late": LateOptions,
    "concat": ConcatOptions,
    "mbt": MbtOptions,
    "mult": NoOptions,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    What only some models support (mixup, fixed attention) is checked when a model is built.

    Attributes:
        name: Key of `OPTIONS`.
        preset: Key of `PRESETS`.
        num_classes: Number of classes; 0 takes it from the data.
        embed_dim: Embedding width `d`.
        num_heads: Number of attention heads `h`, a divisor of `embed_dim`.
        num_pre_layers: Number of encoder blocks before fusion.
        num_post_layers: Number of encoder blocks after fusion.
        dropout: Dropout rate of the residual blocks.
        attention: `dense`, or `fixed` (arXiv 1904.10509) in sequences of CLS and one modality's
            tokens.
        stride: Block length of fixed attention.
        expressivity: Number of tokens at the end of each block that every token attends to.
        implementation: Implementation of dense attention (see `attention/dense.py`).
        dtype: Dtype of the computation; parameters are float32.
        remat: What the backward pass recomputes of an encoder block and of a sparse-pooling block:
            nothing (`none`), everything but products with parameters (`dots`), or everything
            (`block`).
        options: The model's own settings, of the type in `OPTIONS`; by default its defaults.
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
    options: ModelOptions = NoOptions()

    def __post_init__(self):
        check_choice("model.name", self.name, tuple(OPTIONS))
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
        for name in ("stride", "expressivity"):
            value = getattr(self, name)
            if self.attention == "dense" and value != getattr(ModelConfig, name):
                raise ConfigError(
                    f"model.{name}: given {value} with attention 'dense', which does not use it; "
                    "set attention='fixed' or leave it out"
                )
        options = OPTIONS[self.name]
        if self.options == NoOptions():
            object.__setattr__(self, "options", options())
        if not isinstance(self.options, options):
            raise ConfigError(
                f"model.options: given {type(self.options).__name__} for model {self.name!r}, "
                f"expected {options.__name__}; set options={options.__name__}(...)"
            )

    @property
    def num_layers(self) -> int:
        """Number of encoder blocks before and after fusion together."""
        return self.num_pre_layers + self.num_post_layers

    @property
    def style(self) -> BlockStyle:
        """The choices of the preset."""
        return PRESETS[self.preset]
