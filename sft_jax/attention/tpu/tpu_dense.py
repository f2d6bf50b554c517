"""Dense attention in TPU kernels, with the interface of the other implementations."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from sft_jax.attention.tiled_softmax import MASKED_SCORE
from sft_jax.attention.tpu import tpu_kernels
from sft_jax.attention.tpu.tpu_kernels import LANES, Keys, Tiling

_ROWS = 2 * LANES


def kernel_fits(keys: int) -> bool:
    """Whether a tile's map over this many keys fits on the chip."""
    return tpu_kernels.fits(round_up(keys, LANES), LANES)


def kernel_attention(query, key, value, key_mask, query_weights):
    """See `dense.dot_product_attention`, which calls this; a row without real keys is a mean."""
    (b, q, h, e), k = query.shape, key.shape[1]
    keys, queries = round_up(k, LANES), round_up(q, LANES)
    wide = queries % _ROWS == 0 and tpu_kernels.fits(keys, _ROWS)
    tiling = Tiling(_ROWS if wide else LANES)
    mask = jnp.ones((b, k), bool) if key_mask is None else key_mask
    bias = jnp.where(pad_to(mask, keys, axis=1), 0.0, MASKED_SCORE)[:, None]
    far = Keys(to_lanes(key, keys), to_lanes(value, keys), bias)
    weights = None
    if query_weights is not None:
        weights = pad_to(jax.lax.stop_gradient(query_weights) / h, queries, axis=1)[:, None]
    scaled = to_lanes(query * e**-0.5, queries)
    values, saliency, _ = attend(scaled, far, None, weights, tiling)
    values = values[:, :, :e, :q].transpose(0, 3, 1, 2)
    return values, None if saliency is None else saliency[:, 0, :k]


def to_lanes(x, size: int):
    """Transposes `[b, t, h, e]` to `[b, h, e, size]`, zero-padded, `e` to a multiple of 8."""
    x = x.transpose(0, 2, 3, 1)
    return pad_to(pad_to(x, size, axis=3), round_up(x.shape[2], 8), axis=2)


def pad_to(x, size: int, axis: int):
    """Pads an axis of `x` at the end with zeros to `size`."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, padding)


def round_up(size: int, step: int) -> int:
    """Rounds up to a multiple of `step`."""
    return -(-size // step) * step


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query, far, near, weights, tiling):
    """`tpu_kernels.forward` with a gradient: values, and saliency of far and near keys."""
    return _attend_forward_pass((query, far, near, weights), tiling)[0]


def _attend_forward_pass(inputs, tiling):
    query, far, near, weights = inputs
    out = tpu_kernels.forward(query, far, near, weights, tiling)
    result = (out["values"], out.get("far_saliency"), out.get("near_saliency"))
    return result, (query, far, near, weights, out["values"], out["log_sum"])


def _attend_forward(query, far, near, weights, tiling):
    inputs = jax.tree.map(lambda x: x.value, (query, far, near, weights))
    return _attend_forward_pass(inputs, tiling)


def _attend_backward(tiling, residuals, cotangents):
    query, far, near, weights, values, log_sum = residuals
    d_values, *d_saliency = cotangents
    if isinstance(d_values, SymbolicZero):
        d_values = jnp.zeros_like(values)
    rows = {"values": values, "log_sum": log_sum, "d_values": d_values}
    used = weights
    # A pool that only ranks by saliency does not use its gradient: skip that work.
    if all(x is None or isinstance(x, SymbolicZero) for x in d_saliency):
        used = None
    else:
        for name, x in zip(("far", "near"), d_saliency, strict=True):
            if x is not None:
                zero = isinstance(x, SymbolicZero)
                rows[f"{name}_d_saliency"] = jnp.zeros(x.shape, x.dtype) if zero else x
    out = tpu_kernels.backward(query, far, near, used, rows, tiling)

    def gradient(keys, name):
        # Neither the mask nor the query weights are differentiated.
        if keys is None:
            return None
        return Keys(out[f"{name}_d_key"], out[f"{name}_d_value"], jnp.zeros_like(keys.bias))

    d_weights = None if weights is None else jnp.zeros_like(weights)
    return out["d_query"], gradient(far, "far"), gradient(near, "near"), d_weights


attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)
