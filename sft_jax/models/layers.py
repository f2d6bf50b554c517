"""Residual blocks of the transformer (arXiv 2111.11992, section 3.1; pre-norm)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sft_jax.attention.dense import Attention, dot_product_attention
from sft_jax.attention.fixed import fixed_attention, fixed_attention_of
from sft_jax.attention.fixed_blocks import make_pattern
from sft_jax.attention.tpu.tpu_fixed import kernel_fixed_attention, kernel_takes
from sft_jax.config.model import BlockStyle, ModelConfig
from sft_jax.models.blocks import make_block
from sft_jax.models.mixup import Mixer

# One random key per sample, so that results do not depend on the number of devices.
Keys = Key[Array, " b"]
_EPSILON = 1e-5
# For a scan over layers: parameters and other collections get a leading layer axis.
OF_EVERY_LAYER: dict[str, Any] = {
    "variable_axes": {"params": 0, "intermediates": 0},
    "split_rngs": {"params": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Settings shared by all blocks of a model; hashable, so that modules can hold it."""

    embed_dim: int
    num_heads: int
    style: BlockStyle
    dropout: float
    implementation: str
    dtype: jnp.dtype
    attention: str = "dense"
    stride: int = 32
    expressivity: int = 8
    remat: str = "none"

    @classmethod
    def from_model(cls, config: ModelConfig) -> "BlockConfig":
        """Takes the settings of blocks from a `ModelConfig`."""
        return cls(
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            style=config.style,
            dropout=config.dropout,
            implementation=config.implementation,
            dtype=jnp.dtype(config.dtype),
            attention=config.attention,
            stride=config.stride,
            expressivity=config.expressivity,
            remat=config.remat,
        )

    @property
    def dense(self) -> "BlockConfig":
        """The same settings with dense attention, for sequences of several modalities."""
        return dataclasses.replace(self, attention="dense")


def fold_in(keys: Keys | None, data: int | Int[Array, ""]) -> Keys | None:
    """Derives a new stream of per-sample keys; None (no randomness) stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "b *rest"], rate: float, keys: Keys | None) -> Float[Array, "b *rest"]:
    """Zeroes entries at `rate` and rescales the others; the identity without keys.

    Draws 8 random bits per entry, a quarter of a float, since on a CPU drawing costs as much as the
    layer. The rate is therefore rounded to multiples of 1 / 256.
    """
    if keys is None or rate == 0.0:
        return x
    dropped = round(rate * 256)
    size = math.prod(x.shape[1:])
    words = jax.vmap(lambda key: jax.random.bits(key, (math.ceil(size / 4),), jnp.uint32))(keys)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape[0], -1)
    keep = bits[:, :size].reshape(x.shape) >= dropped
    return jnp.where(keep, x * (256 / (256 - dropped)), 0).astype(x.dtype)


class Layer(nn.Module):
    """Base class of modules whose cost is reported as one line (see `layer_costs.py`)."""


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32.

    Attributes:
        affine: Whether there are a learned scale and bias.
    """

    affine: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        """Normalises `x`, keeping its dtype."""
        norm = nn.LayerNorm(
            epsilon=_EPSILON,
            dtype=jnp.float32,
            use_scale=self.affine,
            use_bias=self.affine,
            use_fast_variance=False,
        )
        return norm(x).astype(x.dtype)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with one packed kernel for query, key and value.

    `config.attention` is `dense`, or `fixed` for self-attention with CLS in front.
    """

    config: BlockConfig

    def setup(self):
        """Declares the projections."""
        d, h = self.config.embed_dim, self.config.num_heads
        packed_init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=0, out_axis=(1, 2, 3)
        )
        self.qkv_kernel = self.param("qkv_kernel", packed_init, (d, 3, h, d // h), jnp.float32)
        self.qkv_bias = self.param("qkv_bias", nn.initializers.zeros, (3, h, d // h), jnp.float32)
        self.out = nn.DenseGeneral(
            d, axis=(-2, -1), dtype=self.config.dtype, kernel_init=_OUT_INIT, name="out"
        )

    def __call__(
        self,
        x: Float[Array, "b q d"],
        key_mask: Bool[Array, "b k"],
        query_weights: Float[Array, "b q"] | None = None,
        context: Float[Array, "b k d"] | None = None,
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b k"] | None]:
        """Attends from `x` to `context`, or to itself; also returns the saliency of the keys."""
        fixed = context is None and self.config.attention == "fixed"
        if fixed and kernel_takes(x.shape[1] - 1, make_pattern(**self._pattern())):
            return self._fixed_kernel(x, key_mask, query_weights)
        if context is None:
            query, key, value = self._project(x, slice(0, 3))
        else:
            (query,) = self._project(x, slice(0, 1))
            key, value = self._project(context, slice(1, 3))
        if fixed:
            attention = fixed_attention(
                query,
                key,
                value,
                key_mask=key_mask,
                query_weights=query_weights,
                **self._pattern(),
            )
        else:
            attention = self._dense(query, key, value, key_mask, query_weights)
        return self.out(attention.values), attention.saliency

    def attend_from(
        self,
        x: Float[Array, "b n d"],
        key_mask: Bool[Array, "b n"],
        select: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]],
    ) -> tuple[Float[Array, "b slots d"], Int[Array, "b k"], Float[Array, "b _"] | None]:
        """Attention with only CLS and a few selected tokens as queries; all tokens are keys.

        Args:
            x: Normalised tokens with CLS in front.
            key_mask: True for real tokens.
            select: Maps the attention of CLS to the other tokens, `[b, n-1]`, averaged over heads,
                to the indices of the selected tokens (without CLS) and their scores or None.

        Returns:
            The outputs of CLS and of the selected tokens, and what `select` returned.
        """
        key, value = self._project(x, slice(1, 3))
        (cls_query,) = self._project(x[:, :1], slice(0, 1))
        ones = jnp.ones((x.shape[0], 1), jnp.float32)
        cls = self._dense(cls_query, key, value, key_mask, ones)
        assert cls.saliency is not None  # requested by the weights
        indices, scores = select(cls.saliency[:, 1:])
        selected = jnp.take_along_axis(x, indices[..., None] + 1, axis=1)
        (query,) = self._project(selected, slice(0, 1))
        if self.config.attention == "fixed":
            values = fixed_attention_of(
                query, indices + 1, key, value, key_mask=key_mask, **self._pattern()
            )
        else:
            values = self._dense(query, key, value, key_mask, None).values
        return jnp.concatenate([self.out(cls.values), self.out(values)], axis=1), indices, scores

    def _project(self, x, parts):
        dtype = self.config.dtype
        kernel, bias = self.qkv_kernel[:, parts], self.qkv_bias[parts]
        # [b, t, d] x [d, parts, h, e] -> [b, t, parts, h, e], sliced where it is used.
        packed = jnp.einsum("btd,dshe->btshe", x, kernel.astype(dtype)) + bias.astype(dtype)
        return tuple(packed[:, :, i] for i in range(packed.shape[2]))

    def _fixed_kernel(self, x, key_mask, query_weights):
        dtype = self.config.dtype

        def project(x, parts):
            # Separate products, since slices of a packed one would be copied for the kernels.
            return [
                jnp.einsum("bdt,dhe->bhet", x, self.qkv_kernel[:, part].astype(dtype))
                + self.qkv_bias[part].astype(dtype)[..., None]
                for part in range(3)[parts]
            ]

        return kernel_fixed_attention(
            x,
            project,
            lambda values: self.out(values.transpose(0, 3, 1, 2)).transpose(0, 2, 1),
            key_mask=key_mask,
            query_weights=query_weights,
            pattern=make_pattern(**self._pattern()),
        )

    def _dense(self, query, key, value, key_mask, query_weights) -> Attention:
        return dot_product_attention(
            query,
            key,
            value,
            key_mask=key_mask,
            query_weights=query_weights,
            implementation=self.config.implementation,
        )

    def _pattern(self) -> dict[str, int]:
        return {"stride": self.config.stride, "expressivity": self.config.expressivity}


class AttentionResidual(nn.Module):
    """`z + dropout(MHA(LN(z)))`."""

    config: BlockConfig

    def setup(self):
        """Declares norm and attention."""
        self.norm = LayerNorm(self.config.style.affine_attention_norm, name="norm")
        self.attention = MultiHeadAttention(self.config, name="attention")

    def __call__(
        self,
        z: Float[Array, "b q d"],
        key_mask: Bool[Array, "b k"],
        keys: Keys | None,
        query_weights: Float[Array, "b q"] | None = None,
        context: Float[Array, "b k d"] | None = None,
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b k"] | None]:
        """Returns the new tokens and, if `query_weights` are given, the saliency of the keys.

        Keys and values come from `context`, if given, under the same norm.
        """
        context = None if context is None else self.norm(context)
        update, saliency = self.attention(self.norm(z), key_mask, query_weights, context)
        return z + dropout(update, self.config.dropout, keys), saliency

    def attend_from(
        self,
        z: Float[Array, "b n d"],
        key_mask: Bool[Array, "b n"],
        keys: Keys | None,
        select: Callable[[jax.Array], tuple[jax.Array, jax.Array | None]],
    ) -> tuple[Float[Array, "b slots d"], Int[Array, "b k"], Float[Array, "b _"] | None]:
        """Updates only CLS and the selected tokens (see `MultiHeadAttention.attend_from`).

        Returns:
            CLS and the selected tokens after the update, and what `select` returned.
        """
        update, indices, scores = self.attention.attend_from(self.norm(z), key_mask, select)
        selected = jnp.take_along_axis(z, indices[..., None] + 1, axis=1)
        kept = jnp.concatenate([z[:, :1], selected], axis=1)
        return kept + dropout(update, self.config.dropout, keys), indices, scores


class MlpResidual(nn.Module):
    """`z + dropout(W2 act(dropout(W1 LN(z))))`, in the order of the authors' code."""

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


class EncoderBlock(Layer):
    """Attention residual, then MLP residual."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], key_mask: Bool[Array, "b t"], keys: Keys | None
    ) -> Float[Array, "b t d"]:
        """Returns the new tokens; masked ones are not attended to, and are undefined."""
        z, _ = AttentionResidual(self.config, name="attention")(z, key_mask, fold_in(keys, 0))
        return MlpResidual(self.config, name="mlp")(z, fold_in(keys, 1))


class EncoderStack(nn.Module):
    """`depth` encoder blocks compiled as one loop; every parameter has a leading layer axis."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b t d"],
        key_mask: Bool[Array, "b t"],
        keys: Keys | None,
        mixer: Mixer | None = None,
    ) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
        """Returns the tokens after the last block, and their mask, which `mixer` may widen.

        `mixer` is called after every block with the block's position in the stack.
        """
        if self.depth == 0:
            return z, key_mask

        def body(block, carry, layer):
            z, mask = carry
            z = block(z, mask, fold_in(keys, layer))
            return (z, mask) if mixer is None else mixer(z, mask, layer), None

        scan = nn.scan(body, **OF_EVERY_LAYER, length=self.depth)
        block = make_block(self, EncoderBlock, self.config, name="block", loop=True)
        return scan(block, (z, key_mask), jnp.arange(self.depth))[0]


def dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """A linear layer with float32 parameters, computed in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


_OUT_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
