"""How a function of one head becomes one of all heads of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.attention.platform import target_platform


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
