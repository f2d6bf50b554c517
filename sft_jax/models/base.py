"""The interface of a model, its output, and the head that all models share."""

from typing import ClassVar, Protocol

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ModelConfig
from sft_jax.models.layers import Keys, Layer, LayerNorm, dense
from sft_jax.models.mixup import Mixup
from sft_jax.models.pools import Pooled
from sft_jax.types import Leaf


@flax.struct.dataclass
class Output:
    """The output of a model.

    Attributes:
        logits: `[b, c]` float32.
        pooled: What the pool of each modality returned, by name; empty for models without pools.
    """

    logits: Leaf
    pooled: dict[str, Pooled]


class Model(Protocol):
    """A model as it is called inside `model.apply`."""

    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Computes the logits of a batch.

        Args:
            inputs: `{m: [b, t, f]}`, or `{m: [b, t]}` ids for token modalities, in any order.
            mask: `{m: [b, t]}`, true for real time steps. A modality without one contributes
                nothing to the logits of that sample.
            keys: One random key per sample for dropout and random pools; None for evaluation.
            mixup: Blends samples inside the network; None for models that do not support it.

        Raises:
            ValueError: Names or shapes differ from the modalities of the model.
        """
        ...


class FusionModel(nn.Module):
    """Base class of all models: their attributes and what they support.

    Attributes:
        modalities: Modalities of the inputs, in the order in which they are fused.
        config: Settings of the network.
    """

    modalities: tuple[ModalitySpec, ...]
    config: ModelConfig

    supports_mixup: ClassVar[bool] = False
    supports_fixed_attention: ClassVar[bool] = False

    @staticmethod
    def check(modalities: tuple[ModalitySpec, ...], config: ModelConfig):
        """Raises `ConfigError` if the model cannot be built with these settings."""


def refuse_mixup(mixup: Mixup | None):
    """Raises `ValueError` if a draw is passed to a model that does not support mixup."""
    if mixup is not None:
        raise ValueError("mixup: given to a model that does not support it; pass None")


class Head(Layer):
    """Layer norm and a linear layer, computed in float32.

    Attributes:
        output_size: Number of outputs.
    """

    output_size: int

    @nn.compact
    def __call__(self, cls: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Computes the outputs from the CLS token."""
        normed = LayerNorm(name="norm")(cls.astype(jnp.float32))
        return dense(self.output_size, jnp.dtype("float32"), "linear")(normed)
