"""Operations shared by the tiled implementations of softmax attention.

Scores and log-sum-exp are to base 2: the softmax is `2^(s log2 e) / sum`.

Base 2 saves one multiplication per entry. On a CPU, where passes over a tile dominate, the
exponential is a polynomial, and subtracting a number per row is part of the product.
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

# Score of masked keys; finite, so that a row without any key has no NaN.
MASKED_SCORE = -1e30

# Largest score for which `2^s` and sums of it need no shift by the row maximum, and largest value
# for which their products stay finite.
_SMALL_SCORE = 32.0
_SMALL_VALUE = 2.0**64
_LEAST = -126  # exponent of the smallest normal float32

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def scaled(query: Float[Array, "*axes e"]) -> Float[Array, "*axes e"]:
    """Scales queries so that their products with keys are base-2 scores, with scale `e^-0.5`."""
    return query * (query.shape[-1] ** -0.5 * math.log2(math.e))


def are_small(
    queries: Float[Array, "*axes e"],
    keys: Sequence[Float[Array, "..."]],
    values: Sequence[Float[Array, "..."]],
) -> Bool[Array, ""]:
    """Whether the exponential is safe without subtracting the row maximum.

    No score exceeds the product of the largest norms (Cauchy-Schwarz).

    Args:
        queries: Scaled queries.
        keys: Parts of the keys, `[..., e]`.
        values: Parts of the values.
    """

    def longest(x):
        return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum(axis=-1).max())

    bound = longest(queries) * functools.reduce(jnp.maximum, map(longest, keys))
    largest = functools.reduce(jnp.maximum, (jnp.abs(x).max() for x in values))
    return (bound <= _SMALL_SCORE) & (largest.astype(jnp.float32) <= _SMALL_VALUE)


def product_less(
    rows: Float[Array, "*axes r e"], columns: Float[Array, "*axes k e"], less: Float[Array, "..."]
) -> Float32[Array, "*axes r k"]:
    """Computes `rows columns' - less`, with one number of `less` per row.

    On a CPU, one more column of a float32 product is cheaper than another pass over the tile.
    """
    if target_platform() == "cpu" and rows.dtype == jnp.float32:
        rows = jnp.concatenate([rows, -less[..., None]], axis=-1)
        columns = jnp.concatenate([columns, jnp.ones_like(columns[..., :1])], axis=-1)
        return product("...re,...ke->...rk", rows, columns)
    return product("...re,...ke->...rk", rows, columns) - less[..., None]


def _coefficients(degree: int) -> np.ndarray:
    """Coefficients, lowest first, of a polynomial near `2^f` on `[-1/2, 1/2]`, exact at 0.

    The Taylor series of `(2^f - 1) / f`, truncated in the Chebyshev basis instead of in powers.
    """
    taylor = [math.log(2) ** k / math.factorial(k) for k in range(1, 20)]
    chebyshev = np.polynomial.Polynomial(taylor).convert(
        kind=np.polynomial.Chebyshev, domain=[-0.5, 0.5]
    )
    quotient = chebyshev.truncate(degree).convert(kind=np.polynomial.Polynomial)
    return np.append(1.0, quotient.coef)


# Within 2.1e-7 of 2^f, less than two float32 roundings; a higher degree is slower.
_COEFFICIENTS = _coefficients(5)


def exp2(x: Float32[Array, "*axes"]) -> Float32[Array, "*axes"]:
    """`2^x` in float32 precision for `x` below 128, clipped at -126 from below.

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
    """Maps `function` over samples and heads: sequentially on a CPU, otherwise vectorised.

    A CPU reads and writes every head in place, so that no transposed copies of query, key and value
    are held.

    Args:
        function: Function of `heads`, `rows` and `samples` for one head of one sample, which
            returns a triple of the same structure.
        heads: Arrays `[b, t, h, e]`, passed as `[t, e]`.
        rows: Arrays `[b, h, t]`, passed as `[t]`.
        samples: Arrays `[b, ...]`, passed as `[...]`; returned ones are summed over heads.
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
