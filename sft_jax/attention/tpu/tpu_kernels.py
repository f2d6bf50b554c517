"""Softmax attention as two TPU kernels, forward and backward, whose map stays on the chip.

A TPU lays out the last axis in 128 lanes, so heads of width 8 there would take 16 times their
bytes. Here tokens are in the lanes throughout (`[b, h, e, t]`), and maps have keys in rows and
queries in columns, so that no product or reduction needs a transpose.

A step of the grid is one head of one sample. It loads the head's operands once, loops over tiles of
`rows` queries, and writes the head's results once, so the bytes moved are those of operands and
results, as the cost estimates say.

Every query attends to the *far* keys. If there are *near* keys, as many as queries, it also
attends to those of its own block of `block` tokens; a tile holds whole blocks. Arrays `[b, n]` for
keys or queries are held as `[b, 1, n]`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from sft_jax.attention.platform import target_platform
from sft_jax.attention.tiled_softmax import MASKED_SCORE

LANES = 128
_SUBLANES = 8
_EXACT = jax.lax.Precision.HIGHEST
_VMEM = 14 * 2**20  # of the 16 MiB of the smallest chip


class Keys(NamedTuple):
    """Keys and values.

    Attributes:
        key: `[b, h, e, n]`, `n` a multiple of 128.
        value: `[b, h, e, n]`.
        bias: `[b, 1, n]` float32, 0 for real keys and `MASKED_SCORE` for others.
    """

    key: Float[Array, "b h e n"]
    value: Float[Array, "b h e n"]
    bias: Float[Array, "b 1 n"]


class Tiling(NamedTuple):
    """Tiling of the queries.

    Attributes:
        rows: Queries per tile, a multiple of 128 that divides their number.
        block: Queries, and near keys, per block.
    """

    rows: int
    block: int = 1


def fits(keys: int, rows: int) -> bool:
    """Whether the maps of a tile fit on the chip, with `keys` keys per query."""
    # The backward pass holds two maps in float32 and two in the compute dtype.
    return 4 * 4 * keys * rows <= _VMEM


def forward(
    query: Float[Array, "b h e q"],
    far: Keys,
    near: Keys | None,
    weights: Float[Array, "b 1 q"] | None,
    tiling: Tiling,
) -> dict[str, Array]:
    """Computes values, log-sum-exp of the rows, and saliency if weights are given.

    Args:
        query: Scaled queries; the head width is a multiple of 8.
        far: Keys of all queries.
        near: Keys of a query's own block, or None.
        weights: Weights of the queries in the saliency, or None.
        tiling: Tiling of the queries.

    Returns:
        `values` `[b, h, e, q]`, `log_sum` `[b, h, 1, q]`, and if requested `far_saliency`
        `[b, 1, k]` and `near_saliency` `[b, 1, q]`, summed over heads.
    """
    (b, h, e, q), k = query.shape, far.key.shape[-1]
    inputs = _present(query=query, weights=weights) | _named(far, "far") | _named(near, "near")
    outputs = {"values": (query.shape, query.dtype), "log_sum": ((b, h, 1, q), jnp.float32)}
    if weights is not None:
        outputs["far_saliency"] = ((b, 1, k), jnp.float32)
        if near is not None:
            outputs["near_saliency"] = ((b, 1, q), jnp.float32)
    width = k + (0 if near is None else tiling.rows)
    products = 2 * (e + _SUBLANES) + 2 * e + (0 if weights is None else 2)
    return _call(_forward_kernel, inputs, outputs, {}, tiling, width, products)


def backward(
    query: Float[Array, "b h e q"],
    far: Keys,
    near: Keys | None,
    weights: Float[Array, "b 1 q"] | None,
    rows: dict[str, Array],
    tiling: Tiling,
) -> dict[str, Array]:
    """Computes gradients of `forward` with respect to query, keys and values.

    Args:
        query: See `forward`.
        far: See `forward`.
        near: See `forward`.
        weights: See `forward`; None also if the saliency has no gradient.
        rows: `values` and `log_sum` of `forward`, the cotangent `d_values`, and with weights
            `far_d_saliency` (and `near_d_saliency`).
        tiling: Tiling of the queries.

    Returns:
        `d_query`, `far_d_key`, `far_d_value` and, with near keys, `near_d_key`, `near_d_value`.
    """
    e, k = query.shape[2], far.key.shape[-1]
    inputs = _present(query=query, weights=weights) | _named(far, "far") | _named(near, "near")
    dtype = query.dtype
    outputs = {"d_query": (query.shape, dtype)}
    outputs |= {f"far_d_{x}": (far.key.shape, dtype) for x in ("key", "value")}
    if near is not None:
        outputs |= {f"near_d_{x}": (near.key.shape, dtype) for x in ("key", "value")}
    scratch = {x: pltpu.VMEM((e, k), jnp.float32) for x in ("key_sum", "value_sum")}
    width = k + (0 if near is None else tiling.rows)
    products = 2 * (e + _SUBLANES) + 8 * e + (0 if weights is None else 4)
    return _call(_backward_kernel, inputs | rows, outputs, scratch, tiling, width, products)


def _present(**arrays):
    return {name: x for name, x in arrays.items() if x is not None}


def _named(keys, name):
    return {} if keys is None else {f"{name}_{k}": x for k, x in keys._asdict().items()}


def _call(kernel, inputs, outputs, scratch, tiling, width, products):
    """Runs a kernel over samples and heads.

    Args:
        kernel: Function of dictionaries of references.
        inputs: Arrays `[b, h, ...]`, or `[b, 1, n]` shared by the heads of a sample.
        outputs: Shapes and dtypes of the results, likewise.
        scratch: Scratch buffers by name.
        tiling: Tiling of the queries.
        width: Keys per query.
        products: Operations per pair of query and key.
    """
    b, h, _, q = inputs["query"].shape
    shapes = {name: jax.ShapeDtypeStruct(*x) for name, x in outputs.items()}

    def spec(x):
        if x.ndim == 4:
            return pl.BlockSpec((1, 1, *x.shape[2:]), lambda i, j: (i, j, 0, 0))
        # A block that all heads share stays loaded until the sample is done.
        return pl.BlockSpec((1, *x.shape[1:]), lambda i, j: (i, 0, 0))

    moved = sum(x.size * x.dtype.itemsize for x in (*inputs.values(), *shapes.values()))
    pairs = b * h * q * width
    return pl.pallas_call(
        functools.partial(kernel, tiling=tiling),
        grid=(b, h),
        in_specs=(jax.tree.map(spec, inputs),),
        out_specs=jax.tree.map(spec, shapes),
        out_shape=shapes,
        scratch_shapes=(scratch,),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=pairs * products, transcendentals=pairs, bytes_accessed=moved
        ),
        interpret=target_platform() != "tpu",
    )(inputs)


# --- inside a step of the grid: [e, k] and [e, rows] of one head, maps [k, rows] ------------------


class _Part(NamedTuple):
    """Keys of a tile of queries."""

    name: str  # `far` or `near`
    lanes: slice | pl.Slice  # their range in the last axis of its arrays
    key: Array
    value: Array
    scores: Array


def _forward_kernel(inputs, outputs, scratch, *, tiling):
    far_key = _with_bias(inputs, "far", slice(None))
    for name in ("far_saliency", "near_saliency"):
        if name in outputs:
            _clear_for_sample(outputs[name])

    def tile(at):
        parts = _parts(inputs, far_key, inputs["query"][0, 0, :, at], at, tiling)
        largest = functools.reduce(
            jnp.maximum, (part.scores.max(axis=0, keepdims=True) for part in parts)
        )
        maps = [jnp.exp(part.scores - largest) for part in parts]
        total = sum(x.sum(axis=0, keepdims=True) for x in maps)
        dtype = parts[0].value.dtype
        mixed = sum(
            _product(part.value, x.astype(dtype)) for part, x in zip(parts, maps, strict=True)
        )
        outputs["values"][0, 0, :, at] = (mixed / total).astype(dtype)
        outputs["log_sum"][0, 0, :, at] = largest + jnp.log(total)
        if "weights" in inputs:
            share = inputs["weights"][0, :, at] / total
            for part, x in zip(parts, maps, strict=True):
                outputs[f"{part.name}_saliency"][0, :, part.lanes] += _back(share, x, _EXACT)

    _over_tiles(tile, inputs["query"].shape[-1], tiling)


def _backward_kernel(inputs, outputs, scratch, *, tiling):
    far_key = _with_bias(inputs, "far", slice(None))
    for total in scratch.values():
        total[...] = jnp.zeros(total.shape, total.dtype)

    def tile(at):
        query, d_values = inputs["query"][0, 0, :, at], inputs["d_values"][0, 0, :, at]
        dtype, log_sum = query.dtype, inputs["log_sum"][0, 0, :, at]
        parts = _parts(inputs, far_key, query, at, tiling)
        maps = [jnp.exp(part.scores - log_sum) for part in parts]
        # Part of each row's softmax correction that comes from the values.
        values = inputs["values"][0, 0, :, at].astype(jnp.float32)
        delta = (d_values.astype(jnp.float32) * values).sum(axis=0, keepdims=True)
        cotangents = [_across(part.value, d_values) for part in parts]
        if "weights" in inputs:
            weights = inputs["weights"][0, :, at]
            for i, part in enumerate(parts):
                d_saliency = inputs[f"{part.name}_d_saliency"][0, :, part.lanes]
                cotangents[i] += _across(d_saliency, weights, _EXACT)
                delta += weights * _product(d_saliency, maps[i], _EXACT)
        d_query = jnp.zeros(query.shape, jnp.float32)
        for part, attention, d_attention in zip(parts, maps, cotangents, strict=True):
            d_scores = (attention * (d_attention - delta)).astype(dtype)
            d_query += _product(part.key, d_scores)
            d_key, d_value = _back(query, d_scores), _back(d_values, attention.astype(dtype))
            if part.name == "far":
                scratch["key_sum"][...] += d_key
                scratch["value_sum"][...] += d_value
            else:
                outputs["near_d_key"][0, 0, :, at] = d_key.astype(dtype)
                outputs["near_d_value"][0, 0, :, at] = d_value.astype(dtype)
        outputs["d_query"][0, 0, :, at] = d_query.astype(dtype)

    _over_tiles(tile, inputs["query"].shape[-1], tiling)
    for name in ("key", "value"):
        total = outputs[f"far_d_{name}"]
        total[0, 0] = scratch[f"{name}_sum"][...].astype(total.dtype)


def _over_tiles(tile, queries, tiling):
    def turn(i, _):
        tile(pl.ds(pl.multiple_of(i * tiling.rows, tiling.rows), tiling.rows))
        return _

    jax.lax.fori_loop(0, queries // tiling.rows, turn, None)


def _parts(inputs, far_key, query, at, tiling):
    query = _with_row(query, jnp.ones((1, tiling.rows), jnp.float32))
    key, value = inputs["far_key"][0, 0], inputs["far_value"][0, 0]
    parts = [_Part("far", slice(None), key, value, _across(far_key, query))]
    if "near_key" in inputs:
        scores = _across(_with_bias(inputs, "near", at), query)
        key_block, query_block = (
            jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis), tiling.block)
            for axis in (0, 1)
        )
        scores = jnp.where(key_block == query_block, scores, MASKED_SCORE)
        key, value = (inputs[f"near_{x}"][0, 0, :, at] for x in ("key", "value"))
        parts.append(_Part("near", at, key, value, scores))
    return parts


def _with_bias(inputs, name, at):
    """Keys `[e + 8, k]` whose product with a query ending in 1 is the score plus its bias.

    One more feature costs the product nothing, while a bias per row would need a transpose.
    """
    return _with_row(inputs[f"{name}_key"][0, 0, :, at], inputs[f"{name}_bias"][0, :, at])


def _with_row(x, row):
    """Stacks `[e, n]` and `[1, n]`, zero-padded to whole registers."""
    first = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, x.shape[1]), 0) == 0
    rows = jnp.where(first, row, 0.0)
    return jnp.concatenate([x.astype(jnp.float32), rows]).astype(x.dtype)


def _clear_for_sample(total):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros(total.shape, total.dtype)


def _dot(a, b, axes, precision):
    return jax.lax.dot_general(
        a, b, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _product(x, y, precision=None):  # [e, k] x [k, rows]
    return _dot(x, y, ((1,), (0,)), precision)


def _across(x, y, precision=None):  # [e, k] x [e, rows] -> [k, rows]
    return _dot(x, y, ((0,), (0,)), precision)


def _back(x, y, precision=None):  # [e, rows] x [k, rows] -> [e, k]
    return _dot(x, y, ((1,), (1,)), precision)
