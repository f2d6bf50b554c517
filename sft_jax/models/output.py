"""What every model ends with: its output and its classification head."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from sft_jax.models.layers import LayerNorm, dense
from sft_jax.models.pools import Pooled
from sft_jax.types import Leaf


@flax.struct.dataclass
class Output:
    """What a model returns.

    Attributes:
        logits: `[b, c]` float32.
        pooled: what each modality handed to fusion, by name; empty for models without that step.
    """

    logits: Leaf
    pooled: dict[str, Pooled]


class Head(nn.Module):
    """Layer norm and a linear layer, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, cls: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the classes."""
        normed = LayerNorm(name="norm")(cls.astype(jnp.float32))
        return dense(self.num_classes, jnp.dtype("float32"), "linear")(normed)
