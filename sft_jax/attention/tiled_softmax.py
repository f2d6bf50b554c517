"""Operations shared by the tiled implementations of softmax attention.

Scores and log-sum-exp are to base 2: the softmax is `2^(s log2 e) / sum`.

Base 2 spares a product an entry. On a CPU, where passes over a tile are what costs, an exponential
is a polynomial, and what is to be taken away from a row of scores goes into the product.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from sft_jax.attention.platform import target_platform

# Score of masked keys. It is finite so that a row without any key stays free of NaN.
MASKED_SCORE = -1e30

# A score up to which `2^s`, and sums of it, lose nothing without the row's largest score; and a
# value up to which their products stay finite.
_SMALL_SCORE = 32.0
_SMALL_VALUE = 2.0**64
_LEAST = -126  # exponent of the least normal number of float32

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def scaled(query: Float[Array, "*axes e"]) -> Float[Array, "*axes e"]:
    """Queries whose products with keys are scores to base 2, with scale `e^-0.5`."""
    return query * (query.shape[-1] ** -0.5 * math.log2(math.e))


def are_small(
    queries: Float[Array, "*axes e"],
    keys: Sequence[Float[Array, "..."]],
    values: Sequence[Float[Array, "..."]],
) -> Bool[Array, ""]:
    """Whether no row's largest score needs to be taken away before the exponential.

    No score exceeds the product of the largest norms (Cauchy and Schwarz).

    Args:
        queries: scaled.
        keys: parts of them, `[..., e]`.
        values: parts of them.
    """

    def longest(x):
        return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=-1).max())

    bound = longest(queries) * functools.reduce(jnp.maximum, map(longest, keys))
    largest = functools.reduce(jnp.maximum, (jnp.abs(x).max() for x in values))
    return (bound <= _SMALL_SCORE) & (largest.astype(jnp.float32) <= _SMALL_VALUE)


def product_less(
    rows: Float[Array, "*axes r e"], columns: Float[Array, "*axes k e"], less: Float[Array, "..."]
) -> Float32[Array, "*axes r k"]:
    """`rows columns' - less`, `less` one number a row.

    On a CPU one more column of a float32 product is cheaper than one more pass over the tile.
    """
    if target_platform() == "cpu" and rows.dtype == jnp.float32:
        rows = jnp.concatenate([rows, -less[..., None]], axis=-1)
        columns = jnp.concatenate([columns, jnp.ones_like(columns[..., :1])], axis=-1)
        return product("...re,...ke->...rk", rows, columns)
    return product("...re,...ke->...rk", rows, columns) - less[..., None]


def _coefficients(degree: int) -> np.ndarray:
    """Of a polynomial close to `2^f` on `[-1/2, 1/2]` and equal to it at 0, lowest first.

    The Taylor series of `(2^f - 1) / f`, cut off in Chebyshev's basis rather than in powers.
    """
    taylor = [math.log(2) ** k / math.factorial(k) for k in range(1, 20)]
    chebyshev = np.polynomial.Polynomial(taylor).convert(
        kind=np.polynomial.Chebyshev, domain=[-0.5, 0.5]
    )
    quotient = chebyshev.truncate(degree).convert(kind=np.polynomial.Polynomial)
    return np.append(1.0, quotient.coef)


# Within 2.1e-7 of 2^f, less than two roundings of float32; one degree more takes longer.
_COEFFICIENTS = _coefficients(5)


def exp2(x: Float32[Array, "*axes"]) -> Float32[Array, "*axes"]:
    """`2^x` to float32's precision, for `x` below 128; what is below -126 counts as that.

    On a CPU the polynomial takes about a third of the time of XLA's own function.
    """
    if target_platform() != "cpu":
        return jnp.exp2(x)
    x = jnp.maximum(x, _LEAST)
    whole = jnp.round(x)
    fraction = x - whole
    power = jnp.full_like(x, _COEFFICIENTS[-1])
    for coefficient in _COEFFICIENTS[-2::-1]:
        power = power * fraction + coefficient
    bits = jax.lax.bitcast_convert_type(power, jnp.int32) + (whole.astype(jnp.int32) << 23)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def over_heads(function: Callable[..., Any], heads: Any, rows: Any, samples: Any) -> Any:
    """`function` over the heads of all samples: one after the other on a CPU, else all together.

    A CPU takes every head from where it lies and writes it to where it belongs, so that not even
    transposed copies of query, key and value are held.

    Args:
        function: of the three others for one head of one sample; returns a triple of trees like
            them.
        heads: arrays `[b, t, h, e]`, for the function `[t, e]`.
        rows: arrays `[b, h, t]`, for the function `[t]`.
        samples: arrays `[b, ...]`, for the function `[...]`; those returned are summed over heads.
    """
    b, _, h, _ = jax.tree.leaves(heads)[0].shape
    if target_platform() != "cpu":
        of_sample = jax.vmap(function, in_axes=(1, 0, None), out_axes=(1, 0, 0))
        heads, rows, samples = jax.vmap(of_sample)(heads, rows, samples)
        return heads, rows, jax.tree.map(lambda x: x.sum(axis=1), samples)

    def pick(x, sample, head, axis):
        x = jax.lax.dynamic_index_in_dim(x, sample, keepdims=False)
        return x if axis is None else jax.lax.dynamic_index_in_dim(x, head, axis, keepdims=False)

    def one(i):
        inputs = ((heads, 1), (rows, 0), (samples, None))
        return function(
            *(
                jax.tree.map(lambda x, axis=axis: pick(x, i // h, i % h, axis), tree)
                for tree, axis in inputs
            )
        )

    def step(i, totals):
        parts = one(i)
        n, head = i // h, i % h
        return (
            jax.tree.map(lambda total, x: total.at[n, :, head].set(x), totals[0], parts[0]),
            jax.tree.map(lambda total, x: total.at[n, head].set(x), totals[1], parts[1]),
            jax.tree.map(lambda total, x: total.at[n].add(x), totals[2], parts[2]),
        )

    like = jax.eval_shape(one, 0)
    totals = (
        jax.tree.map(lambda x: jnp.zeros((b, x.shape[0], h, x.shape[1]), x.dtype), like[0]),
        jax.tree.map(lambda x: jnp.zeros((b, h, *x.shape), x.dtype), like[1]),
        jax.tree.map(lambda x: jnp.zeros((b, *x.shape), x.dtype), like[2]),
    )
    return jax.lax.fori_loop(0, b * h, step, totals)
