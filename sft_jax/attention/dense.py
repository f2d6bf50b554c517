"""Softmax attention with key-padding masks, in three implementations that agree to 1e-5.

`xla` materialises the attention map and leaves the rest to the compiler. `streamed` computes it in
tiles and never holds a `[b, h, q, k]` array (`streamed.py`). `pallas` does so in TPU kernels
(`tpu/tpu_dense.py`), which other platforms interpret. All can return the *saliency* of the keys:
the weighted column mean of the map, by which the sparse-pooling block ranks tokens (arXiv
2111.11992, section 3.2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sft_jax.attention.platform import target_platform
from sft_jax.attention.streamed import streamed
from sft_jax.attention.tiled_softmax import MASKED_SCORE
from sft_jax.attention.tpu.tpu_dense import kernel_attention, kernel_fits
from sft_jax.config.checks import check_choice
from sft_jax.config.model import IMPLEMENTATIONS

_CPU_STREAM_FROM = 128 * 128  # scores per head above which streaming is faster on a CPU
_TPU_KERNEL_FROM = 128 * 128  # scores per head above which the kernel moves fewer bytes
_ACCELERATOR_STREAM_FROM = 1024 * 1024


class Attention(NamedTuple):
    """Result of an attention.

    Attributes:
        values: `[b, q, h, e]` weighted values, zero for a sample without any real key.
        saliency: `[b, k]` float32 saliency of the keys, or None if not requested.
    """

    values: Float[Array, "b q h e"]
    saliency: Float[Array, "b k"] | None


def dot_product_attention(
    query: Float[Array, "b q h e"],
    key: Float[Array, "b k h e"],
    value: Float[Array, "b k h e"],
    *,
    key_mask: Bool[Array, "b k"] | None = None,
    query_weights: Float[Array, "b q"] | None = None,
    implementation: str = "auto",
) -> Attention:
    """Softmax attention with scale `e^-0.5`; softmax and saliency in float32.

    Args:
        query: Projected heads, in the compute dtype.
        key: Projected heads of the keys.
        value: Projected heads of the values.
        key_mask: True for keys that may be attended to; None if all may.
        query_weights: Weights `w_i` of the queries; requests the saliency
            `s_j = sum_i w_i mean_h A[h, i, j]` of each key. Not differentiable in the weights.
        implementation: `xla`, `streamed`, `pallas`, or `auto` (see `choose_implementation`).

    Raises:
        ConfigError: The implementation is unknown.
    """
    chosen = choose_implementation(implementation, target_platform(), query.shape[1], key.shape[1])
    attend = {"xla": _materialized, "streamed": streamed, "pallas": kernel_attention}[chosen]
    values, saliency = attend(query, key, value, key_mask, query_weights)
    if key_mask is not None:
        # Only the rows of a sample without any real key have an undefined softmax.
        some = key_mask.any(axis=1)
        values = jnp.where(some[:, None, None, None], values, 0)
        saliency = None if saliency is None else jnp.where(some[:, None], saliency, 0)
    return Attention(values, saliency)


def choose_implementation(implementation: str, platform: str, queries: int, keys: int) -> str:
    """Resolves `auto` by platform and length: streamed if the map does not fit the caches.

    On a TPU its kernel is used, up to the length at which a tile no longer fits on the chip.
    """
    check_choice("model.implementation", implementation, IMPLEMENTATIONS)
    if implementation != "auto":
        return implementation
    if platform == "tpu" and queries * keys >= _TPU_KERNEL_FROM and kernel_fits(keys):
        return "pallas"
    threshold = _CPU_STREAM_FROM if platform == "cpu" else _ACCELERATOR_STREAM_FROM
    return "streamed" if queries * keys >= threshold else "xla"


def _materialized(query, key, value, key_mask, query_weights):
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bqhe,bkhe->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if key_mask is not None:
        scores = jnp.where(key_mask[:, None, None, :], scores, MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1)
    values = jnp.einsum("bhqk,bkhe->bqhe", weights.astype(value.dtype), value)
    if query_weights is None:
        return values, None
    query_weights = jax.lax.stop_gradient(query_weights) / query.shape[2]
    return values, jnp.einsum("bhqk,bq->bk", weights, query_weights)
