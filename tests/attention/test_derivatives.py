"""Every derivative that is written by hand, against finite differences."""

import functools
import zlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import QUICK
from test_tpu_attention import kernel_fixed

from sft_jax.attention import streamed
from sft_jax.attention.dense import dot_product_attention
from sft_jax.attention.fixed import fixed_attention
from sft_jax.attention.tpu.lane_moves import bounded, compaction, move

STEP = 1e-2


def dense(implementation, query, key, value, mask, weights):
    return dot_product_attention(
        query, key, value, key_mask=mask, query_weights=weights, implementation=implementation
    )


def fixed(query, key, value, mask, weights):
    mask, pattern = mask.at[:, 0].set(True), {"stride": 3, "expressivity": 1}
    return fixed_attention(query, key, value, key_mask=mask, query_weights=weights, **pattern)


def fixed_kernel(query, key, value, mask, weights):
    mask = mask.at[:, 0].set(True)
    return kernel_fixed(mask, stride=4, expressivity=2)(query, key, value, weights)


def moved(x, real):
    """To the front, doubled, and back."""
    moves = compaction(real, jnp.cumsum(real, axis=1) - 1)
    moves = bounded(moves, real, jnp.arange(x.shape[2]) < real.sum(axis=1, keepdims=True))
    front = move(x, moves)
    return front, move(front**2, moves, back=True)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def slopes(outputs, differentiable, arrays, directions, cotangents):
    """Of a combination of all outputs, along each direction: by gradient and by difference."""

    def value(*given):
        leaves = jax.tree.leaves(outputs(*given, *arrays[differentiable:]))
        return sum((x * d).sum() for x, d in zip(leaves, cotangents, strict=True))

    given = arrays[:differentiable]
    gradients = jax.grad(value, argnums=tuple(range(differentiable)))(*given)
    # One map over all, so that the forward pass is compiled once.
    places = [
        [x + side * STEP * direction * (i == j) for j, x in enumerate(given)]
        for i, direction in enumerate(directions)
        for side in (1, -1)
    ]
    values = jax.lax.map(
        lambda place: value(*place), jax.tree.map(lambda *x: jnp.stack(x), *places)
    )
    by_difference = (values[0::2] - values[1::2]) / (2 * STEP)
    by_gradient = [(g * d).sum() for g, d in zip(gradients, directions, strict=True)]
    return jnp.stack(by_gradient), by_difference


def check(outputs, differentiable, arrays, seed):
    rng = np.random.default_rng(seed)
    directions = []
    for x in arrays[:differentiable]:
        direction = rng.normal(size=x.shape)
        directions.append(jnp.asarray(direction / np.sqrt((direction**2).mean()), jnp.float32))
    shapes = jax.tree.leaves(jax.eval_shape(outputs, *arrays))
    cotangents = tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in shapes)
    by_gradient, by_difference = slopes(
        outputs, differentiable, tuple(arrays), tuple(directions), cotangents
    )
    # Of size about 5; float32 leaves 1e-4 of a difference, the third derivative as much.
    np.testing.assert_allclose(by_gradient, by_difference, atol=2e-2, rtol=2e-2)


ATTENTIONS = {
    "streamed": functools.partial(dense, "streamed"),
    "fixed": fixed,
    "pallas": functools.partial(dense, "pallas"),
    "fixed kernel": fixed_kernel,
}
# Interpreted kernels take seconds to compile, and a shape is filled up to 128 lanes anyway.
EXAMPLES = {"streamed": 2, "fixed": 2, "pallas": 1, "fixed kernel": 1}


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_the_gradient_of_an_attention_is_its_slope(name):
    """Of values and saliency together, in several tiles, under any masks."""

    @settings(max_examples=EXAMPLES[name], derandomize=True)
    @given(b=st.integers(1, 2), t=st.integers(2, 8), h=st.integers(1, 2), e=st.integers(1, 4))
    def each_shape(b, t, h, e):
        for seed in range(4):
            rng = np.random.default_rng(seed + zlib.crc32(bytes((b, t, h, e))))
            heads = rng.normal(size=(3, b, t, h, e)).astype(np.float32)
            # The last mask of all leaves nothing.
            mask = jnp.asarray(rng.random((b, t)) < (1.0, 0.7, 0.3, 0.0)[seed])
            weights = jnp.asarray(rng.random((b, t)), jnp.float32)
            check(ATTENTIONS[name], 3, [*map(jnp.asarray, heads), mask, weights], seed)

    tiling = streamed.Tiling(3, 2)
    with mock.patch.object(streamed, "plan", return_value=tiling):
        each_shape()


@settings(max_examples=2)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_the_gradient_of_moves_is_their_slope(seed, share):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(1, 2, 128)), jnp.float32)
    check(moved, 1, [x, jnp.asarray(rng.random((1, 128)) < share)], seed)
