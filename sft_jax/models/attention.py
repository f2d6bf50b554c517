"""Softmax attention with key-padding masks, in three implementations that agree to 1e-5.

`xla` writes the attention map out and leaves the rest to the compiler. `streamed` computes it in
tiles, never holds a `[b, h, q, k]` array, and recomputes each tile in the backward pass from the
saved log-sum-exp of its rows (the idea of arXiv 2205.14135); `pallas` does so in kernels of a TPU
(`tpu_attention.py`), which other machines interpret. All can return the *saliency* of the keys, the
weighted column mean of the map that the sparse-pooling block ranks tokens by (arXiv 2111.11992,
section 3.2), which the streamed passes sum up as they go.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from sft_jax.models.platform import target_platform
from sft_jax.models.tpu_attention import kernel_attention, kernel_fits
from sft_jax.types import IMPLEMENTATIONS, check_choice

_MASKED = -1e30  # finite, so that a row without any key stays free of NaN
_CPU_TILE = 2**21  # scores of one head in a tile on a CPU (8 MiB)
_CPU_STREAM_FROM = 128 * 128  # scores of one head from which streaming is faster on a CPU
_ACCELERATOR_ROWS = 256
_TPU_KERNEL_FROM = 128 * 128  # scores of one head from which the kernel moves fewer bytes
_ACCELERATOR_STREAM_FROM = 1024 * 1024


class Attention(NamedTuple):
    """What an attention returns.

    Attributes:
        values: `[b, q, h, e]` mixed values, zero for a sample without any real key.
        saliency: `[b, k]` float32, or None where none was asked for.
    """

    values: Float[Array, "b q h e"]
    saliency: Float[Array, "b k"] | None


class _Tile(NamedTuple):
    heads: int  # rows of the flattened [b * h] axis computed together
    rows: int  # queries computed together


class _Tiling(NamedTuple):
    forward: _Tile
    backward: _Tile


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
        query: projected heads, in the compute dtype.
        key: as `query`.
        value: as `query`.
        key_mask: true where a key may be attended to; None where all may.
        query_weights: asks for the saliency `s_j = sum_i w_i mean_h A[h, i, j]` of each key; not
            differentiated with respect to the weights.
        implementation: `xla`, `streamed`, `pallas`, or `auto` (see `choose_implementation`).

    Raises:
        ConfigError: unknown implementation.
    """
    chosen = choose_implementation(implementation, target_platform(), query.shape[1], key.shape[1])
    attend = {"xla": _materialized, "streamed": _streamed, "pallas": kernel_attention}[chosen]
    values, saliency = attend(query, key, value, key_mask, query_weights)
    if key_mask is not None:
        # Only a sample without any real key has rows whose softmax means nothing.
        some = key_mask.any(axis=1)
        values = jnp.where(some[:, None, None, None], values, 0)
        saliency = None if saliency is None else jnp.where(some[:, None], saliency, 0)
    return Attention(values, saliency)


def choose_implementation(implementation: str, platform: str, queries: int, keys: int) -> str:
    """`auto` by platform and length: streamed where the map no longer fits close to the cores.

    On a TPU by its kernel, up to the length at which a tile of it no longer fits on the chip.
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
        scores = jnp.where(key_mask[:, None, None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    values = jnp.einsum("bhqk,bkhe->bqhe", weights.astype(value.dtype), value)
    if query_weights is None:
        return values, None
    query_weights = jax.lax.stop_gradient(query_weights) / query.shape[2]
    return values, jnp.einsum("bhqk,bq->bk", weights, query_weights)


def _streamed(query, key, value, key_mask, query_weights):
    b, q, h, e = query.shape
    k = key.shape[1]
    platform = target_platform()
    tiling = _plan(b * h, q, k, platform)

    def flatten(x):  # [b, t, h, e] -> [b * h, t, e]
        return x.transpose(0, 2, 1, 3).reshape(b * h, x.shape[1], e)

    def per_head(x):  # [b, t] -> [b * h, t]
        return jnp.repeat(x, h, axis=0)

    query, key, bias = flatten(query * e**-0.5), flatten(key), None
    if key_mask is not None:
        bias = per_head(jnp.where(key_mask, 0.0, _MASKED))
        if platform == "cpu":
            # One more column in the product is cheaper there than one more pass over the tile.
            query = jnp.concatenate([query, jnp.ones_like(query[..., :1])], axis=-1)
            key = jnp.concatenate([key, bias[..., None].astype(key.dtype)], axis=-1)
            bias = None
    if query_weights is not None:
        query_weights = per_head(jax.lax.stop_gradient(query_weights) / h)
    values, saliency = _tiled(query, key, flatten(value), bias, query_weights, tiling)
    values = values.reshape(b, h, q, e).transpose(0, 2, 1, 3)
    if saliency is not None:
        saliency = saliency.reshape(b, h, k).sum(axis=1)
    return values, saliency


def _plan(heads: int, queries: int, keys: int, platform: str) -> _Tiling:
    """Tile sizes: on a CPU what its caches like best, on an accelerator many rows at once."""
    if platform != "cpu":
        tile = _Tile(heads, min(queries, _ACCELERATOR_ROWS))
        return _Tiling(tile, tile)
    # Measured with 64 to 4096 tokens: whole heads forward, pairs of half heads backward.
    forward = _even_rows(queries, min(queries, _CPU_TILE // keys))
    backward = _even_rows(queries, min(math.ceil(queries / 2), _CPU_TILE // keys))
    return _Tiling(_Tile(1, forward), _Tile(2, backward))


def _even_rows(queries: int, most: int) -> int:
    blocks = math.ceil(queries / max(1, most))
    return math.ceil(queries / blocks)


# Flattened arrays below: g heads of one tile, r rows (queries) of one tile, k keys, e head width.


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _tiled(query, key, value, bias, weights, tiling):
    return _forward_pass(query, key, value, bias, weights, tiling)[0]


def _tiled_forward(query, key, value, bias, weights, tiling):
    inputs = (x and x.value for x in (query, key, value, bias, weights))
    return _forward_pass(*inputs, tiling)


def _forward_pass(query, key, value, bias, weights, tiling):
    def head_group(args):
        query, key, value, bias, weights = args  # [g, q, e], [g, k, e], ..., [g, k], [g, q]

        def row_block(saliency, block):
            values, log_sum, part = _tile_forward(block[0], key, value, bias, block[1])
            return (None if saliency is None else saliency + part), (values, log_sum)

        saliency = None if weights is None else jnp.zeros(key.shape[:2], jnp.float32)
        blocks = _to_blocks((query, weights), tiling.forward.rows)
        saliency, (values, log_sum) = jax.lax.scan(row_block, saliency, blocks)
        q = query.shape[1]
        return _from_blocks(values, q), _from_blocks(log_sum, q), saliency

    inputs = (query, key, value, bias, weights)
    values, log_sum, saliency = _map_groups(head_group, inputs, tiling.forward.heads)
    return (values, saliency), (*inputs, values, log_sum)


def _tiled_backward(tiling, residuals, cotangents):
    query, key, value, bias, weights, values, log_sum = residuals
    d_values, d_saliency = cotangents
    # A pool that only ranks by saliency has no use for its gradient: leave that work out.
    if isinstance(d_saliency, SymbolicZero):
        d_saliency = None
    if isinstance(d_values, SymbolicZero):
        d_values = jnp.zeros_like(values)
    # The part of each row's softmax correction that comes from the values; O(q e), not O(q k).
    delta = jnp.einsum("nqe,nqe->nq", d_values, values, preferred_element_type=jnp.float32)

    def head_group(args):
        query, key, value, bias, weights, log_sum, d_values, delta, d_saliency = args

        def row_block(totals, block):
            d_query, d_key, d_value = _tile_backward(block, key, value, bias, d_saliency)
            return (totals[0] + d_key, totals[1] + d_value), d_query

        zeros = tuple(jnp.zeros((g, e, k), jnp.float32) for g, k, e in (key.shape, value.shape))
        blocks = _to_blocks((query, weights, log_sum, d_values, delta), tiling.backward.rows)
        (d_key, d_value), d_query = jax.lax.scan(row_block, zeros, blocks)
        d_query = _from_blocks(d_query, query.shape[1])
        return d_query, d_key.transpose(0, 2, 1), d_value.transpose(0, 2, 1)

    inputs = (query, key, value, bias, weights, log_sum, d_values, delta, d_saliency)
    grads = _map_groups(head_group, inputs, tiling.backward.heads)
    d_query, d_key, d_value = (
        grad.astype(x.dtype) for grad, x in zip(grads, residuals[:3], strict=True)
    )
    # Neither the mask nor the query weights are differentiated.
    zero_bias = None if bias is None else jnp.zeros_like(bias)
    return d_query, d_key, d_value, zero_bias, None if weights is None else jnp.zeros_like(weights)


_tiled.defvjp(_tiled_forward, _tiled_backward, symbolic_zeros=True)


def _tile_forward(query, key, value, bias, weights):
    scores = _scores(query, key, bias)
    largest = scores.max(axis=-1, keepdims=True)
    unnormalized = jnp.exp(scores - largest)
    total = unnormalized.sum(axis=-1)  # [g, r]
    values = jnp.einsum(
        "grk,gke->gre",
        unnormalized.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    values = (values / total[..., None]).astype(value.dtype)
    saliency = None
    if weights is not None:
        saliency = jnp.einsum("gr,grk->gk", weights / total, unnormalized)
    return values, largest[..., 0] + jnp.log(total), saliency


def _tile_backward(block, key, value, bias, d_saliency):
    query, weights, log_sum, d_values, delta = block
    attention = jnp.exp(_scores(query, key, bias) - log_sum[..., None])
    d_attention = jnp.einsum("gre,gke->grk", d_values, value, preferred_element_type=jnp.float32)
    if d_saliency is not None:
        d_attention += weights[..., None] * d_saliency[:, None, :]
        delta += weights * jnp.einsum("grk,gk->gr", attention, d_saliency)
    d_scores = (attention * (d_attention - delta[..., None])).astype(key.dtype)
    attention = attention.astype(key.dtype)
    # The small operand on the left and keys innermost: XLA's CPU products run half as long as with
    # the map transposed.
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_key = product("gre,grk->gek", query, d_scores)
    d_value = product("gre,grk->gek", d_values, attention)
    return product("grk,gke->gre", d_scores, key), d_key, d_value


def _scores(query, key, bias):
    scores = jnp.einsum("gre,gke->grk", query, key, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + bias[:, None, :]


def _map_groups(function, inputs, heads: int):
    """`function` over groups of `heads` rows of the leading axis, one group after the other."""
    n = inputs[0].shape[0]
    heads = max(divisor for divisor in range(1, heads + 1) if n % divisor == 0)
    grouped = jax.tree.map(lambda x: x.reshape(n // heads, heads, *x.shape[1:]), inputs)
    mapped = jax.lax.map(function, grouped)
    return jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), mapped)


def _to_blocks(arrays, rows: int):
    """`[g, q, ...] -> [blocks, g, rows, ...]`, padded with zero rows, which add nothing."""

    def cut(x):
        blocks = math.ceil(x.shape[1] / rows)
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, blocks * rows - x.shape[1])
        x = jnp.pad(x, padding).reshape(x.shape[0], blocks, rows, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    return jax.tree.map(cut, arrays)


def _from_blocks(x, queries: int):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]
