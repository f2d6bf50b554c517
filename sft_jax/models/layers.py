"""Residual blocks of the transformer (arXiv 2111.11992, section 3.1; pre-norm)."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sft_jax.config import BlockStyle, ModelConfig
from sft_jax.models.attention import Attention, dot_product_attention

Keys = Key[Array, " b"]  # one random key per sample, so that nothing depends on the device count
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What every block of a model is made with; hashable, so that modules can hold it."""

    num_heads: int
    style: BlockStyle
    dropout: float
    implementation: str
    dtype: jnp.dtype

    @classmethod
    def from_model(cls, config: ModelConfig) -> "BlockConfig":
        """The blocks' share of a `ModelConfig`."""
        return cls(
            num_heads=config.num_heads,
            style=config.style,
            dropout=config.dropout,
            implementation=config.implementation,
            dtype=jnp.dtype(config.dtype),
        )


def fold_in(keys: Keys | None, data: int | Int[Array, ""]) -> Keys | None:
    """A new stream of per-sample keys, or None (no randomness) from None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "b *rest"], rate: float, keys: Keys | None) -> Float[Array, "b *rest"]:
    """Zeroes entries at `rate` and rescales the others; the identity without keys.

    Draws 8 random bits an entry, a quarter of what a float takes, since on a CPU drawing them costs
    as much as the layer; so the rate is rounded to 1 / 256.
    """
    if keys is None or rate == 0.0:
        return x
    dropped = round(rate * 256)
    size = math.prod(x.shape[1:])
    words = jax.vmap(lambda key: jax.random.bits(key, (math.ceil(size / 4),), jnp.uint32))(keys)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape[0], -1)
    keep = bits[:, :size].reshape(x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), 0).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32.

    Attributes:
        affine: whether there is a learned scale and bias.
    """

    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        """Normalises `x`; the result has its dtype."""
        norm = nn.LayerNorm(
            epsilon=_EPSILON,
            dtype=jnp.float32,
            use_scale=self.affine,
            use_bias=self.affine,
            use_fast_variance=False,
        )
        return norm(x).astype(x.dtype)


class MultiHeadAttention(nn.Module):
    """Projections around `dot_product_attention`, one packed kernel for query, key and value."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        key_mask: Bool[Array, "b t"],
        query_weights: Float[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t"] | None]:
        """Self-attention; returns its output and the keys' saliency (see `Attention`)."""
        d, h, dtype = x.shape[-1], self.config.num_heads, self.config.dtype
        packed_init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2, 3)
        )
        kernel = self.param("qkv_kernel", packed_init, (d, 3, h, d // h))
        bias = self.param("qkv_bias", nn.initializers.zeros, (3, h, d // h))
        # [b, t, d] x [d, 3, h, e] -> [3, b, t, h, e]
        packed = jnp.einsum("btd,dshe->sbthe", x, kernel.astype(dtype))
        query, key, value = packed + bias.astype(dtype)[:, None, None]
        attention: Attention = dot_product_attention(
            query,
            key,
            value,
            key_mask=key_mask,
            query_weights=query_weights,
            implementation=self.config.implementation,
        )
        out = nn.DenseGeneral(d, axis=(-2, -1), dtype=dtype, kernel_init=_OUT_INIT, name="out")(
            attention.values
        )  # [b, t, h, e] -> [b, t, d]
        return out, attention.saliency


class AttentionResidual(nn.Module):
    """`z + dropout(MHA(LN(z)))`."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b t d"],
        key_mask: Bool[Array, "b t"],
        keys: Keys | None,
        query_weights: Float[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t"] | None]:
        """Returns the new tokens and, where asked for by `query_weights`, the saliency."""
        normed = LayerNorm(self.config.style.affine_attention_norm, name="norm")(z)
        update, saliency = MultiHeadAttention(self.config, name="attention")(
            normed, key_mask, query_weights
        )
        return z + dropout(update, self.config.dropout, keys), saliency


class MlpResidual(nn.Module):
    """`z + dropout(W2 act(dropout(W1 LN(z))))`, with the order of the authors' code."""

    config: BlockConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b t d"], keys: Keys | None) -> Float[Array, "b t d"]:
        """Returns the new tokens."""
        config, d = self.config, z.shape[-1]
        activation = {"relu": nn.relu, "gelu": nn.gelu}[config.style.activation]
        hidden = LayerNorm(name="norm")(z)
        hidden = dense(round(config.style.mlp_ratio * d), config.dtype, "in")(hidden)
        hidden = activation(dropout(hidden, config.dropout, fold_in(keys, 0)))
        update = dense(d, config.dtype, "out")(hidden)
        return z + dropout(update, config.dropout, fold_in(keys, 1))


class EncoderBlock(nn.Module):
    """Attention residual, then MLP residual."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], key_mask: Bool[Array, "b t"], keys: Keys | None
    ) -> Float[Array, "b t d"]:
        """Returns the new tokens; masked ones are not attended to and mean nothing."""
        z, _ = AttentionResidual(self.config, name="attention")(z, key_mask, fold_in(keys, 0))
        return MlpResidual(self.config, name="mlp")(z, fold_in(keys, 1))


class EncoderStack(nn.Module):
    """`depth` encoder blocks compiled as one loop; every parameter has a leading layer axis."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], key_mask: Bool[Array, "b t"], keys: Keys | None
    ) -> Float[Array, "b t d"]:
        """Returns the tokens after the last block."""
        if self.depth == 0:
            return z
        layers = jnp.arange(self.depth)

        def body(block, z, layer):
            return block(z, key_mask, fold_in(keys, layer)), None

        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )
        return scan(EncoderBlock(self.config, name="block"), z, layers)[0]


def dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """A linear layer with float32 parameters, computed in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


_OUT_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
