"""Sparse pooling (arXiv 2111.11992, section 3.2): from the `t` tokens of a modality to a few.

A pool that selects is three pure functions: a score per token (the saliency of the attention in
front of it), a choice of indices, a gather. Masked tokens never win over real ones; what a pool
returns carries a mask of its own, and a slot without a real token is zero and masked.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models.layers import AttentionResidual, BlockConfig, Keys
from sft_jax.types import SELECTING_POOLS, Leaf, ModalitySpec


@flax.struct.dataclass
class Pooled:
    """What a modality hands to fusion.

    Attributes:
        tokens: `[b, k, d]`, zero where masked.
        mask: `[b, k]`, true where a slot holds something real.
        indices: `[b, k]` token (without CLS) in each slot, -1 in empty slots; None for pools that
            mix tokens.
        saliency: `[b, k]` saliency of those tokens, 0 in empty slots; None as `indices`.
    """

    tokens: Leaf
    mask: Leaf
    indices: Leaf | None = None
    saliency: Leaf | None = None


def saliency_weights(mask: Bool[Array, "b t"]) -> Float[Array, "b t+1"]:
    """Weights of the queries whose mean is the saliency: the real tokens alike, CLS not at all."""
    weights = mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return jnp.pad(weights.astype(jnp.float32), ((0, 0), (1, 0)))


def choose_top(score: Float[Array, "b t"], mask: Bool[Array, "b t"], k: int) -> Int[Array, "b k"]:
    """Indices of the `k` highest scores, descending, ties lowest index first, real ones first."""
    return jax.lax.top_k(jnp.where(mask, score, -jnp.inf), k)[1]


def gather(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    score: Float[Array, "b t"],
    indices: Int[Array, "b k"],
) -> Pooled:
    """The chosen tokens, in the order of `indices`."""
    chosen = jnp.take_along_axis(mask, indices, axis=1)
    picked = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    return Pooled(
        tokens=jnp.where(chosen[..., None], picked, 0),
        mask=chosen,
        indices=jnp.where(chosen, indices, -1),
        saliency=jnp.where(chosen, jnp.take_along_axis(score, indices, axis=1), 0),
    )


def attn_topk(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    saliency: Float[Array, "b t"],
    spec: ModalitySpec,
) -> Pooled:
    """Keeps the `k` tokens of highest saliency, most salient first."""
    return gather(tokens, mask, saliency, choose_top(saliency, mask, spec.k))


def max_pool(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    saliency: Float[Array, "b t"] | None,
    spec: ModalitySpec,
) -> Pooled:
    """Maximum of each channel over every window."""
    windows, real = to_windows(tokens, mask, spec.window)
    lowest = jnp.finfo(tokens.dtype).min
    pooled = jnp.where(real[..., None], windows, lowest).max(axis=2)
    return _windowed(pooled, real)


def avg_pool(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    saliency: Float[Array, "b t"] | None,
    spec: ModalitySpec,
) -> Pooled:
    """Mean of each channel over the real tokens of every window."""
    windows, real = to_windows(tokens, mask, spec.window)
    total = jnp.where(real[..., None], windows, 0).sum(axis=2, dtype=jnp.float32)
    count = jnp.maximum(real.sum(axis=2), 1)[..., None]
    return _windowed((total / count).astype(tokens.dtype), real)


def keep_all(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    saliency: Float[Array, "b t"] | None,
    spec: ModalitySpec,
) -> Pooled:
    """Dense fusion: every token stays. The baseline that savings are stated against."""
    return Pooled(tokens=jnp.where(mask[..., None], tokens, 0), mask=mask)


def to_windows(
    tokens: Float[Array, "b t d"], mask: Bool[Array, "b t"], window: int
) -> tuple[Float[Array, "b k window d"], Bool[Array, "b k window"]]:
    """Windows over the real tokens in their order, padding left out, and which entries are real.

    A sequence of `n` real tokens fills `max(1, n // window)` windows; a shorter tail is dropped,
    as it is without padding. So padding moves no token into another window.
    """
    k = tokens.shape[1] // window
    count = mask.sum(axis=1)
    # Stable, so that real tokens come first and keep their order.
    order = jnp.argsort(~mask, axis=1, stable=True)[:, : k * window]
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    filled = jnp.maximum(count // window, 1) * window
    real = jnp.arange(k * window) < jnp.minimum(count, filled)[:, None]
    shape = (tokens.shape[0], k, window)
    return tokens.reshape(*shape, -1), real.reshape(shape)


def _windowed(pooled, real):
    mask = real.any(axis=2)
    return Pooled(tokens=jnp.where(mask[..., None], pooled, 0), mask=mask)


POOL_FUNCTIONS = {"attn_topk": attn_topk, "max": max_pool, "avg": avg_pool, "none": keep_all}


class SparsePooling(nn.Module):
    """The sparse-pooling block: one more attention residual, without MLP, then the pool."""

    spec: ModalitySpec
    config: BlockConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], mask: Bool[Array, "b t"], keys: Keys | None
    ) -> tuple[Float[Array, "b d"], Pooled]:
        """From tokens with CLS in front to CLS and the pooled rest."""
        weights = None
        if self.spec.pool in SELECTING_POOLS:
            weights = saliency_weights(mask[:, 1:])
        z, saliency = AttentionResidual(self.config, name="attention")(z, mask, keys, weights)
        saliency = None if saliency is None else saliency[:, 1:]
        pool = POOL_FUNCTIONS[self.spec.pool]
        return z[:, 0], pool(z[:, 1:], mask[:, 1:], saliency, self.spec)
