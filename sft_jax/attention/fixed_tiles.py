"""Fixed-pattern attention for one head of one sample, forward and backward, in tiles of queries.

Keys are *shared* (all summaries) or *local* (CLS and the rest of a block, for the block's own
queries). An empty slot repeats CLS as query and key, with a zero value and no part in the
denominator. So no product needs a mask, and the largest score of a row always belongs to a key it
may attend to. Scores and log-sum-exp are to base 2.

Shapes: `t` tokens and CLS make `t+1`; `n` blocks per tile, `s` slots per block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sft_jax.attention.fixed_blocks import Pattern, Slots, arrange, cut, join, merge, restore, split
from sft_jax.attention.platform import target_platform
from sft_jax.attention.tiled_softmax import (
    MASKED_SCORE,
    are_small,
    exp2,
    product,
    product_less,
    scaled,
)

# Scores per tile on a CPU, where the backward pass holds two maps at once. Forward tiles of a
# third of the size use half the memory, but take a tenth longer and pad the last tile more.
_CPU_TILE = 6 * 2**15
_CPU_BACKWARD_TILE = 2**16
_ACCELERATOR_ROWS = 256


def forward_head(heads, rows, samples: tuple[Array | None, Slots], pattern: Pattern):
    """Computes values, log-sum-exp of the rows and saliency.

    Args:
        heads: Query, key and value, `[t+1, e]`.
        rows: Empty.
        samples: Query weights `[t+1]`, zero where masked, or None; slots.
        pattern: Sizes of blocks and summaries.

    Returns:
        Three tuples of one: values `[t+1, e]`; log-sum-exp `[1 + slots]`; saliency `[t+1]` or None.
    """
    (query, key, value), (weights, slots) = heads, samples
    query = scaled(query)
    weight = None if weights is None else weights[:1]
    cls = _cls_forward(query[:1], key, value, weight, slots.mask)
    if len(key) > 1:
        cls = _tokens_forward(query, key, value, weights, cls, slots, pattern)
    return tuple((x,) for x in cls)


def backward_head(heads, rows, samples, pattern: Pattern):
    """Computes gradients with respect to query, key and value.

    Args:
        heads: Query, key, value, the returned values and their cotangent, `[t+1, e]`.
        rows: Log-sum-exp, `[1 + slots]`.
        samples: Query weights and the cotangent of the saliency, `[t+1]` or None; slots.
        pattern: See `forward_head`.

    Returns:
        The three gradients `[t+1, e]`, and two empty tuples.
    """
    query, key, value, values, d_values = heads
    (log_sum,), (weights, d_saliency, slots) = rows, samples
    query = scaled(query)
    # Part of each row's softmax correction that comes from the values: O(t e), not O(t t).
    delta = product("te,te->t", d_values, values)
    per_query = (query, d_values, delta, None if d_saliency is None else weights)
    cls = jax.tree.map(lambda x: x[:1], per_query)
    d_query, d_key, d_value = _cls_backward(cls, log_sum[:1], key, value, d_saliency, slots.mask)
    if len(key) > 1:
        tokens = _tokens_backward(per_query, log_sum[1:], key, value, d_saliency, slots, pattern)
        d_query = jnp.concatenate([d_query, tokens[0]])
        d_key, d_value = d_key + tokens[1], d_value + tokens[2]
    # The derivative with respect to a base-2 score is that of a plain score times log 2.
    grads = scaled(d_query) * math.log(2), d_key * math.log(2), d_value
    return tuple(x.astype(key.dtype) for x in grads), (), ()


# --- CLS, which attends to every token ----------------------------------------------------------


def _cls_scores(query, key, mask):
    scores = product("re,ke->rk", query, key)
    return scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)


def _cls_forward(query, key, value, weight, mask):
    scores = _cls_scores(query, key, mask)
    largest = scores.max(axis=-1)
    log_sum = largest + jnp.log2(jnp.exp2(scores - largest).sum(axis=-1))
    attention = jnp.exp2(scores - log_sum[:, None])
    values = product("rk,ke->re", attention.astype(value.dtype), value).astype(value.dtype)
    return values, log_sum, None if weight is None else attention[0] * weight


def _cls_backward(cls, log_sum, key, value, d_saliency, mask):
    query, d_values, delta, weight = cls
    attention = jnp.exp2(_cls_scores(query, key, mask) - log_sum[:, None])
    d_attention = product("re,ke->rk", d_values, value)
    if d_saliency is not None:
        d_attention += weight * d_saliency
        delta += weight * (attention @ d_saliency)
    d_scores = (attention * (d_attention - delta)).astype(key.dtype)
    attention = attention.astype(key.dtype)
    d_query = product("rk,ke->re", d_scores, key)
    return d_query, _outer(d_scores, query), _outer(attention, d_values)


def _outer(row, x):  # [1, k], [1, e] -> [k, e]
    return row[0, :, None].astype(jnp.float32) * x.astype(jnp.float32)


# --- the other tokens, in slots -----------------------------------------------------------------


class _Keys(NamedTuple):
    """Keys and values of the queries, with 1 for real and 0 for empty ones."""

    key: Array  # [shared, e]
    value: Array
    real: Array  # [shared]
    local_key: Array  # [blocks, 1 + local, e]
    local_value: Array
    local_real: Array  # [blocks, 1 + local]

    @property
    def local(self):
        return self.local_key, self.local_value, self.local_real

    def tiles(self, limit: int, stride: int) -> int:
        """Number of tiles for the blocks of queries."""
        rows = limit // len(self.key) if target_platform() == "cpu" else _ACCELERATOR_ROWS
        return math.ceil(len(self.local_key) / max(1, rows // stride))


def _keys(key, value, slots, pattern) -> _Keys:
    real, local_real = split(slots.real.astype(jnp.float32), jnp.ones(1), pattern)
    key, local_key = split(arrange(key, slots, pattern), key[:1], pattern)
    value, local_value = split(arrange(value, slots, pattern), value[:1], pattern)
    value = value * real[:, None].astype(value.dtype)
    local_value = local_value * local_real[..., None].astype(value.dtype)
    return _Keys(key, value, real, local_key, local_value, local_real)


def _blocks(x, slots, pattern):
    """Gathers `[t+1, ...]` into `[blocks, stride, ...]`, zero in empty slots (CLS counts once)."""
    x = arrange(x, slots, pattern)
    return cut(jnp.where(slots.real.reshape(-1, *[1] * (x.ndim - 1)), x, 0), pattern)


def _tokens_forward(query, key, value, weights, cls, slots, pattern):
    """Adds the tokens' rows to those of CLS: values, log-sum-exp and saliency."""
    t, size = len(key) - 1, len(slots.real)
    keys = _keys(key, value, slots, pattern)
    query = cut(arrange(query, slots, pattern), pattern)
    weights = None if weights is None else _blocks(weights, slots, pattern)

    def run(shift):
        return functools.partial(_run_tiles, shift=shift)

    inputs = query, weights, cls[:2], keys
    if target_platform() == "cpu":
        small = are_small(query, [keys.key, keys.local_key], [keys.value, keys.local_value])
        totals, near = jax.lax.cond(small, run(shift=False), run(shift=True), *inputs)
    else:
        totals, near = run(shift=True)(*inputs)
    values, log_sum, by_shared = totals
    values = jnp.concatenate([values[:1], restore(values[1 : 1 + size], slots, t, pattern)])
    saliency = cls[2]
    if weights is not None:
        by_slot, of_cls = join(by_shared, merge(near)[: len(query)], pattern)
        by_token = restore(by_slot, slots, t, pattern)
        saliency += jnp.concatenate([of_cls, by_token])
    return values, log_sum[: 1 + size], saliency


def _run_tiles(query, weights, cls, keys, *, shift):
    """Values and log-sum-exp of all slots after CLS, and saliency of shared and local keys.

    With `shift`, each row's largest score is subtracted first, which large scores require.
    """
    stride = query.shape[1]
    count = keys.tiles(_CPU_TILE, stride)
    local = keys.local_key, _counted(keys.local_value, keys.local_real)
    tiles = _to_tiles((query, weights, local), count)
    rows = math.ceil(len(query) / count) * stride
    shared = keys.key, _counted(keys.value, keys.real)

    def tile(totals, block):
        i, query, weights, local = block
        values, log_sum, far, near = _tile_forward(query, weights, local, shared, shift)
        put = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=1 + i * rows, axis=0
        )
        total = None if far is None else totals[2] + far
        return (put(totals[0], merge(values)), put(totals[1], merge(log_sum)), total), near

    # Write the rows of CLS first, so that their inputs can be freed.
    start = [jnp.pad(x, [(0, count * rows), *[(0, 0)] * (x.ndim - 1)]) for x in cls]
    by_shared = None if weights is None else jnp.zeros_like(keys.real)
    return jax.lax.scan(tile, (*start, by_shared), (jnp.arange(count), *tiles))


def _counted(value, real):
    """Values with a column of ones for real keys, whose weighted sum is the row's denominator."""
    return jnp.concatenate([value, real[..., None].astype(value.dtype)], axis=-1)


def _tile_forward(query, weights, local, shared, shift):
    n, stride, e = query.shape
    (key, counted), (local_key, local_counted) = shared, local
    # Keys are the outer axis, so that rows fill vector registers.
    far = product("ge,re->gr", key, merge(query))
    near = product("nke,nse->nks", local_key, query)
    largest = jnp.zeros((n, stride), jnp.float32)
    if shift:
        largest = jnp.maximum(far.max(axis=0).reshape(n, stride), near.max(axis=1))
        far, near = far - largest.reshape(-1), near - largest[:, None]
    far, near = exp2(far), exp2(near)
    dtype = counted.dtype
    mixed = product("gc,gr->cr", counted, far.astype(dtype)).reshape(e + 1, n, stride)
    mixed += product("nkc,nks->cns", local_counted, near.astype(dtype))
    # Zero only for the rows that pad the last tile.
    total = jnp.maximum(mixed[-1], jnp.finfo(jnp.float32).tiny)
    values = jnp.moveaxis((mixed[:-1] / total).astype(dtype), 0, -1)
    log_sum = largest + jnp.log2(total)
    if weights is None:
        return values, log_sum, None, None
    weights = weights / total
    return values, log_sum, far @ weights.reshape(-1), product("nks,ns->nk", near, weights)


def _tokens_backward(per_query, log_sum, key, value, d_saliency, slots, pattern):
    """Gradients from the tokens' rows: queries `[t, e]`, keys and values `[t+1, e]`."""
    t = len(key) - 1
    keys = _keys(key, value, slots, pattern)
    # An empty slot keeps the query of CLS, which its log-sum-exp belongs to.
    query = cut(arrange(per_query[0], slots, pattern), pattern)
    rest = jax.tree.map(lambda x: _blocks(x, slots, pattern), per_query[1:])
    per_query = (query, *rest)
    d_shared = d_local = None
    if d_saliency is not None:
        d_slots = jnp.where(slots.real, arrange(d_saliency, slots, pattern), 0)
        d_shared, d_local = split(d_slots, d_saliency[:1], pattern)
    # The key of an empty slot is that of CLS, which must count only once.
    counted = keys.key * keys.real[:, None].astype(key.dtype)

    def tile(totals, block):
        d_query, d_key, d_value, *local = _tile_backward(block, keys, counted, d_shared)
        return (totals[0] + d_key, totals[1] + d_value), (d_query, *local)

    zeros = jnp.zeros(keys.key.T.shape, jnp.float32)
    count = keys.tiles(_CPU_BACKWARD_TILE, pattern.stride)
    tiles = _to_tiles((per_query, cut(log_sum, pattern), keys.local, d_local), count)
    shared, outputs = jax.lax.scan(tile, (zeros, zeros), tiles)
    d_query, *local = jax.tree.map(lambda x: merge(x)[: len(keys.local_key)], outputs)

    def to_tokens(shared, local):
        d_slots, d_cls = join(shared.T, local, pattern)
        return jnp.concatenate([d_cls, restore(d_slots, slots, t, pattern)])

    return restore(merge(d_query), slots, t, pattern), *map(to_tokens, shared, local)


def _tile_backward(block, keys, counted, d_shared):
    per_query, log_sum, local, d_local = block
    query, d_values, delta, weights = per_query
    local_key, local_value, local_real = local
    far_query, far_d_values = (x.reshape(-1, x.shape[2]) for x in (query, d_values))
    far = exp2(product_less(far_query, keys.key, log_sum.reshape(-1)))
    near = exp2(product_less(query, local_key, log_sum))
    d_far = product_less(far_d_values, keys.value, delta.reshape(-1))
    d_near = product_less(d_values, local_value, delta)
    if d_shared is not None:
        sums = (far @ d_shared).reshape(delta.shape) + product("nsk,nk->ns", near, d_local)
        d_far += weights.reshape(-1, 1) * (d_shared - sums.reshape(-1, 1))
        d_near += weights[..., None] * (d_local[:, None] - sums[..., None])
    dtype = query.dtype
    d_far, d_near = (far * d_far).astype(dtype), (near * d_near).astype(dtype)
    far, near = far.astype(dtype), near.astype(dtype)
    # Small operand on the left and keys innermost, as in `streamed.py`.
    d_key = product("re,rk->ek", far_query, d_far)
    d_value = product("re,rk->ek", far_d_values, far)
    d_query = product("rk,ke->re", d_far, counted).reshape(query.shape)
    d_query += product("nsk,nke->nse", d_near, local_key * local_real[..., None].astype(dtype))
    d_local_key = product("nsk,nse->nke", d_near, query)
    return d_query, d_key, d_value, d_local_key, product("nsk,nse->nke", near, d_values)


def _to_tiles(arrays, tiles: int):
    """Reshapes `[blocks, ...]` to `[tiles, n, ...]`, padded with zeros."""

    def to_tiles(x):
        n = math.ceil(len(x) / tiles)
        padding = [(0, tiles * n - len(x))] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(tiles, n, *x.shape[1:])

    return jax.tree.map(to_tiles, arrays)
