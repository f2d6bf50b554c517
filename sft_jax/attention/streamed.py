"""Softmax attention in tiles: no `[b, h, q, k]` array, forward or backward.

The backward pass recomputes a tile of the map from the saved log-sum-exp of its rows (the idea of
arXiv 2205.14135). The saliency of the keys is accumulated over tiles. Scores and log-sum-exp are to
base 2.

On a CPU most time goes into passes over a tile. If no score can be large, the row maximum need not
be
subtracted: the map is then one product and one exponential, and its row sums come out of the same
product as the values.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from sft_jax.attention.platform import target_platform
from sft_jax.attention.tiled_softmax import (
    MASKED_SCORE,
    are_small,
    exp2,
    over_heads,
    product,
    product_less,
    scaled,
)

_CPU_TILE = 2**21  # scores per tile in the forward pass (8 MiB)
_CPU_BACKWARD_TILE = 2**20  # scores per map, of which the backward pass holds two
_CPU_ROWS = 16  # float32 values in the widest vector register
_ACCELERATOR_ROWS = 256


class Tiling(NamedTuple):
    """Rows of the map (queries) computed at once in each pass."""

    forward: int
    backward: int


def streamed(
    query: Float[Array, "b q h e"],
    key: Float[Array, "b k h e"],
    value: Float[Array, "b k h e"],
    key_mask: Bool[Array, "b k"] | None,
    query_weights: Float[Array, "b q"] | None,
) -> tuple[Float[Array, "b q h e"], Float[Array, "b k"] | None]:
    """Values and saliency; see `dense.dot_product_attention`.

    Rows of a sample without any real key are finite but undefined.
    """
    if query_weights is not None:
        query_weights = jax.lax.stop_gradient(query_weights) / query.shape[2]
    tiling = plan(query.shape[1], key.shape[1], target_platform())
    return _streamed(query, key, value, key_mask, query_weights, tiling)


def plan(queries: int, keys: int, platform: str) -> Tiling:
    """Tile sizes: fitted to the caches on a CPU, many rows at once on an accelerator."""
    if platform != "cpu":
        rows = min(queries, _ACCELERATOR_ROWS)
        return Tiling(rows, rows)
    return Tiling(
        _even_rows(queries, _CPU_TILE // keys), _even_rows(queries, _CPU_BACKWARD_TILE // keys)
    )


def _even_rows(queries: int, most: int) -> int:
    """Rows per block of equal blocks, in full vectors if they are long enough."""
    rows = math.ceil(queries / math.ceil(queries / max(1, most)))
    return rows if rows < _CPU_ROWS else math.ceil(rows / _CPU_ROWS) * _CPU_ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _streamed(query, key, value, mask, weights, tiling):
    return _forward_pass((query, key, value, mask, weights), tiling)[0]


def _forward(query, key, value, mask, weights, tiling):
    inputs = [x and x.value for x in (query, key, value, mask, weights)]
    return _forward_pass(inputs, tiling)


def _forward_pass(inputs, tiling):
    query, key, value, mask, weights = inputs
    head = functools.partial(_forward_head, rows=tiling.forward)
    outputs = over_heads(head, (query, key, value), (), (mask, weights))
    (values,), (log_sum,), (saliency,) = outputs
    return (values, saliency), (query, key, value, mask, weights, values, log_sum)


def _backward(tiling, residuals, cotangents):
    query, key, value, mask, weights, values, log_sum = residuals
    d_values, d_saliency = cotangents
    # A pool that only ranks by saliency does not use its gradient: skip that work.
    if isinstance(d_saliency, SymbolicZero):
        d_saliency = None
    if isinstance(d_values, SymbolicZero):
        d_values = jnp.zeros_like(values)
    head = functools.partial(_backward_head, rows=tiling.backward)
    heads = (query, key, value, values, d_values)
    grads, _, _ = over_heads(head, heads, (log_sum,), (mask, weights, d_saliency))
    # Neither the mask nor the query weights are differentiated.
    return *grads, None, None if weights is None else jnp.zeros_like(weights)


_streamed.defvjp(_forward, _backward, symbolic_zeros=True)


# One head of one sample below: q queries, k keys, r queries of one tile, e head width.


def _real(x, mask):
    """Zeroes padding, NaN included, so that it affects neither products nor the bound of scores."""
    return x if mask is None else jnp.where(mask[:, None], x, 0)


def _forward_head(heads, _, samples, *, rows):
    """Computes values `[q, e]`, base-2 log-sum-exp `[q]`, and saliency `[k]` or None."""
    (query, key, value), (mask, weights) = heads, samples
    query, key, value = scaled(query), _real(key, mask), _real(value, mask)
    counted = jnp.ones(len(value)) if mask is None else mask
    counted = jnp.concatenate([value, counted[:, None].astype(value.dtype)], axis=1)

    def run(shift):
        return functools.partial(_forward_tiles, rows=rows, shift=shift)

    inputs = (query, key, counted, mask, weights)
    if target_platform() == "cpu":
        shift = jnp.logical_not(are_small(query, [key], [value]))
        values, log_sum, saliency = jax.lax.cond(shift, run(shift=True), run(shift=False), *inputs)
    else:
        values, log_sum, saliency = run(shift=True)(*inputs)
    return (values,), (log_sum,), (saliency,)


def _forward_tiles(query, key, counted, mask, weights, *, rows, shift):
    def tile(saliency, block):
        values, log_sum, part = _forward_tile(block[0], key, counted, mask, block[1], shift)
        return (None if saliency is None else saliency + part), (values, log_sum)

    saliency = None if weights is None else jnp.zeros(len(key), jnp.float32)
    blocks = _to_blocks((query, weights), rows)
    saliency, outputs = jax.lax.scan(tile, saliency, blocks)
    return *_from_blocks(outputs, len(query)), saliency


def _forward_tile(query, key, counted, mask, weights, shift):
    """One tile, with keys as the outer axis so that rows fill vector registers.

    `counted` are the values with a column of ones, zero for masked keys. With `shift`, each row's
    largest score is subtracted first, which large scores require.
    """
    scores = product("ke,re->kr", key, query)
    largest: Any = 0.0
    if shift:
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, MASKED_SCORE)
        largest = scores.max(axis=0)
        scores -= largest
    unnormalized = exp2(scores)
    mixed = product("ke,kr->er", counted, unnormalized.astype(counted.dtype))
    # Zero only for a sample without any real key.
    total = jnp.maximum(mixed[-1], jnp.finfo(jnp.float32).tiny)
    values = (mixed[:-1] / total).astype(counted.dtype).T
    saliency = None
    if weights is not None:
        saliency = product("kr,r->k", unnormalized, weights / total)
        saliency = saliency if mask is None else jnp.where(mask, saliency, 0)
    return values, largest + jnp.log2(total), saliency


def _backward_head(heads, rows_of_map, samples, *, rows):
    """Computes gradients with respect to query, key and value."""
    query, key, value, values, d_values = heads
    (log_sum,), (mask, weights, d_saliency) = rows_of_map, samples
    query, key, value = scaled(query), _real(key, mask), _real(value, mask)
    if d_saliency is not None and mask is not None:
        d_saliency = jnp.where(mask, d_saliency, 0)
    # Part of each row's softmax correction that comes from the values: O(q e), not O(q k).
    delta = product("qe,qe->q", d_values, values)

    def tile(totals, block):
        d_query, d_key, d_value = _backward_tile(block, key, value, mask, d_saliency)
        return (totals[0] + d_key, totals[1] + d_value), d_query

    zeros = (jnp.zeros(key.T.shape, jnp.float32), jnp.zeros(value.T.shape, jnp.float32))
    blocks = _to_blocks((query, weights, log_sum, d_values, delta), rows)
    (d_key, d_value), d_query = jax.lax.scan(tile, zeros, blocks)
    # The derivative with respect to a base-2 score is that of a plain score times log 2.
    d_query = scaled(_from_blocks(d_query, len(query))) * math.log(2)
    grads = d_query, _real(d_key.T, mask) * math.log(2), _real(d_value.T, mask)
    primals = (query, key, value)
    return tuple(g.astype(x.dtype) for g, x in zip(grads, primals, strict=True)), (), ()


def _backward_tile(block, key, value, mask, d_saliency):
    query, weights, log_sum, d_values, delta = block
    scores = product_less(query, key, log_sum)
    if mask is not None:
        # Zeros in place of masked keys may score above the row's sum. They do not matter as
        # long as they are finite.
        scores = jnp.minimum(scores, 0)
    attention = exp2(scores)
    d_attention = product_less(d_values, value, delta)
    if d_saliency is not None:
        own = attention @ d_saliency
        d_attention += weights[:, None] * (d_saliency - own[:, None])
    d_scores = (attention * d_attention).astype(key.dtype)
    attention = attention.astype(key.dtype)
    # Small operand on the left and keys innermost: XLA's CPU products take half as long as with
    # the map transposed.
    d_key = product("re,rk->ek", query, d_scores)
    d_value = product("re,rk->ek", d_values, attention)
    return product("rk,ke->re", d_scores, key), d_key, d_value


def _to_blocks(arrays, rows: int):
    """Reshapes `[q, ...]` to `[blocks, rows, ...]`, padded with zero rows."""

    def cut(x):
        blocks = math.ceil(len(x) / rows)
        padding = [(0, blocks * rows - len(x))] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(blocks, rows, *x.shape[1:])

    return jax.tree.map(cut, arrays)


def _from_blocks(arrays, queries: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:queries], arrays)
