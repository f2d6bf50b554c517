"""Attention over the fixed pattern of Sparse Transformers (arXiv 1904.10509), bidirectional.

A sequence consists of CLS and `t` tokens. CLS, at position 0, attends to everything and everything
attends to it. The real tokens are divided, in order, into blocks of `stride`. A token attends to
its own block, to the *summary* of every block (its last `expressivity` tokens) and to CLS, under
one softmax.

The map over all pairs is never computed. Tokens are laid out in slots, block after block, so that
the
pattern becomes two plain products: all queries with the *shared* keys (the summaries), and each
block's queries with its *local* keys (CLS and the rest of the block). As in `streamed.py`, they
run in tiles of queries, and the backward pass recomputes a tile from the saved log-sum-exp of its
rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from sft_jax.attention.dense import Attention
from sft_jax.attention.fixed_blocks import arrange, make_pattern, make_slots, slot_of, split
from sft_jax.attention.fixed_tiles import backward_head, forward_head
from sft_jax.attention.tiled_softmax import MASKED_SCORE, over_heads


def fixed_attention(
    query: Float[Array, "b n h e"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    *,
    key_mask: Bool[Array, "b n"] | None = None,
    query_weights: Float[Array, "b n"] | None = None,
    stride: int = 32,
    expressivity: int = 8,
) -> Attention:
    """Attention over the fixed pattern with scale `e^-0.5`; softmax and saliency in float32.

    Args:
        query: Projected heads, in the compute dtype; token 0 is CLS.
        key: Projected heads of the keys.
        value: Projected heads of the values.
        key_mask: True for real tokens; None if all are. Blocks are counted over the real tokens, so
            padding does not affect them. CLS is always real. A masked token is not attended to, and
            its own row of the result is zero.
        query_weights: Weights `w_i` of the queries; requests the saliency
            `s_j = sum_i w_i mean_h A[h, i, j]` of each key over the real queries `i`. Not
            differentiable in the weights.
        stride: Tokens per block.
        expressivity: Tokens in a block's summary; with `stride` or more, the pattern is dense.

    Raises:
        ConfigError: `stride` or `expressivity` is below 1.
    """
    pattern = make_pattern(stride, expressivity)
    slots = make_slots(key_mask, query.shape[0], query.shape[1] - 1, pattern)
    if query_weights is not None:
        query_weights = jax.lax.stop_gradient(query_weights) / query.shape[2]
        if slots.mask is not None:
            query_weights = query_weights * slots.mask
    return Attention(*_fixed(query, key, value, query_weights, slots, pattern))


def fixed_attention_of(
    query: Float[Array, "b k h e"],
    index: Int[Array, "b k"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    *,
    key_mask: Bool[Array, "b n"] | None = None,
    stride: int = 32,
    expressivity: int = 8,
) -> Float[Array, "b k h e"]:
    """Rows of `fixed_attention` for a few tokens, each computed with its own keys only.

    Costs `O(k (stride + t expressivity / stride))` instead of `O(k t)`.

    Args:
        query: Projected heads of the selected tokens.
        index: Their positions in the sequence, from 1. The row of CLS, which attends to
            everything, is one of `dot_product_attention` (`query[:, :1]`). The row of a masked
            token is finite but undefined.
        key: Projected heads of all tokens; token 0 is CLS.
        value: Projected heads of all values.
        key_mask: See `fixed_attention`.
        stride: See `fixed_attention`.
        expressivity: See `fixed_attention`.

    Raises:
        ConfigError: `stride` or `expressivity` is below 1.
    """
    pattern = make_pattern(stride, expressivity)
    slots = make_slots(key_mask, key.shape[0], key.shape[1] - 1, pattern)
    if key.shape[1] == 1:
        return jnp.zeros_like(query)
    rows = functools.partial(_rows_of_sample, pattern=pattern)
    return jax.vmap(rows)(query * query.shape[-1] ** -0.5, index - 1, key, value, slots)


def _rows_of_sample(query, token, key, value, slots, pattern):
    """Attention `[k, h, e]` of `k` scaled queries of one sample."""
    slot = slot_of(token, len(key) - 1, pattern) if slots.slot is None else slots.slot[token]
    block = slot // pattern.stride
    real, local_real = split(slots.real, jnp.ones(1, bool), pattern)
    key, local_key = split(arrange(key, slots, pattern), key[:1], pattern)
    value, local_value = split(arrange(value, slots, pattern), value[:1], pattern)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("khe,ghe->hkg", query, key)
    local_scores = product("khe,klhe->hkl", query, local_key[block])
    scores = jnp.where(real, scores, MASKED_SCORE)
    local_scores = jnp.where(local_real[block], local_scores, MASKED_SCORE)
    weights = jax.nn.softmax(jnp.concatenate([scores, local_scores], axis=-1), axis=-1)
    weights = weights.astype(value.dtype)
    weights, local_weights = weights[..., : len(key)], weights[..., len(key) :]
    values = product("hkg,ghe->khe", weights, value)
    values += product("hkl,klhe->khe", local_weights, local_value[block])
    return values.astype(value.dtype)


# --- forward and backward -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fixed(query, key, value, weights, slots, pattern):
    return _fixed_forward_pass((query, key, value, weights, slots), pattern)[0]


def _fixed_forward_pass(inputs, pattern):
    query, key, value, weights, slots = inputs
    forward = functools.partial(forward_head, pattern=pattern)
    outputs = over_heads(forward, (query, key, value), (), (weights, slots))
    (values,), (log_sum,), (saliency,) = outputs
    return (values, saliency), (query, key, value, weights, slots, values, log_sum)


def _fixed_forward(query, key, value, weights, slots, pattern):
    inputs = jax.tree.map(lambda x: x.value, (query, key, value, weights, slots))
    return _fixed_forward_pass(inputs, pattern)


def _fixed_backward(pattern, residuals, cotangents):
    query, key, value, weights, slots, values, log_sum = residuals
    d_values, d_saliency = cotangents
    # A pool that only ranks by saliency does not use its gradient: skip that work.
    if isinstance(d_saliency, SymbolicZero):
        d_saliency = None
    if isinstance(d_values, SymbolicZero):
        d_values = jnp.zeros_like(values)
    heads = (query, key, value, values, d_values)
    backward = functools.partial(backward_head, pattern=pattern)
    grads, _, _ = over_heads(backward, heads, (log_sum,), (weights, d_saliency, slots))
    # Neither the mask nor the query weights are differentiated.
    return *grads, None, None


_fixed.defvjp(_fixed_forward, _fixed_backward, symbolic_zeros=True)
