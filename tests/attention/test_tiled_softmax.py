"""Softmax to base 2: its exponential, its products, and when no row's maximum is needed."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.attention import streamed
from sft_jax.attention.dense import dot_product_attention
from sft_jax.attention.tiled_softmax import are_small, exp2, product_less, scaled


def platform(name):
    return mock.patch.object(jax, "default_backend", return_value=name)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_powers_of_two_are_exact_to_single_precision(machine):
    x = np.linspace(-126, 127.5, 40001, dtype=np.float32)
    with platform(machine):
        given = jax.jit(exp2)(x)  # compiled, since a compiler may rewrite its rounding
    np.testing.assert_allclose(given, np.exp2(np.float64(x)), rtol=3e-7)


def test_whole_powers_have_no_error_and_what_is_too_small_stays_finite():
    whole = jnp.arange(-126, 128, dtype=jnp.float32)
    np.testing.assert_array_equal(exp2(whole), np.exp2(np.float64(whole)))
    tiny = exp2(jnp.array([-126.5, -1e30, -jnp.inf], jnp.float32))
    np.testing.assert_array_equal(tiny, np.full(3, 2.0**-126, np.float32))
    assert jnp.isnan(exp2(jnp.array(jnp.nan)))


def test_products_of_scaled_queries_are_scores_to_base_two():
    query, key = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([2.0, 0.0, -1.0, 1.0])
    # (2 - 3 + 4) / 2 = 1.5
    assert float(jnp.exp2(scaled(query) @ key)) == pytest.approx(np.exp(1.5), rel=1e-6)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_number_a_row_is_taken_away_in_full_precision(machine, dtype):
    rows = jnp.array([[[1.0, 2.0], [3.0, 4.0]]], dtype)
    columns = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype)
    # 1/3 has no bfloat16; what is taken away must not be rounded to one.
    less = jnp.array([[1 / 3, -2.0]])
    with platform(machine):
        given = product_less(rows, columns, less)
    expected = [[[1 - 1 / 3, 2 - 1 / 3, 3 - 1 / 3], [5, 6, 9]]]
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 20.0), e=st.integers(1, 6))
def test_small_means_that_no_score_is_large(seed, size, e):
    rng = np.random.default_rng(seed)
    query, *keys = (jnp.asarray(rng.normal(size=(5, e)) * size, jnp.float32) for _ in range(3))
    largest = max(float(jnp.abs(query @ key.T).max()) for key in keys)
    small = bool(are_small(query, keys, keys))
    assert not small or largest <= 32.001
    # And it is no empty promise: what is far below the bound is small.
    assert small or max(float(jnp.square(x).sum(-1).max()) for x in (query, *keys)) > 32


def test_large_values_and_nan_are_not_small():
    one = jnp.ones((1, 2))
    assert are_small(one, [one], [one])
    assert not are_small(one, [one], [one, 2.0**65 * one])
    for case in ((jnp.nan * one, one, one), (one, jnp.nan * one, one), (one, one, jnp.nan * one)):
        assert not are_small(case[0], [case[1]], [case[2]])


@pytest.mark.parametrize("size", [1.0, 2.0**70])
def test_both_ways_of_a_forward_tile_agree_across_the_bound(size):
    """Scores from tiny to far beyond the bound; values whose products overflow unless shifted."""
    rng = np.random.default_rng(0)
    for scale in (0.1, 2.0, 6.0, 40.0):
        query, key = (jnp.asarray(scale * rng.normal(size=(2, 9, 1, 4)), "f4") for _ in range(2))
        value = jnp.asarray(size * rng.normal(size=(2, 9, 1, 4)), "f4")
        mask = jnp.asarray(rng.random((2, 9)) > 0.3).at[:, 0].set(True)
        given, expected = (
            dot_product_attention(query, key, value, key_mask=mask, implementation=name).values
            for name in ("streamed", "xla")
        )
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 * size * max(1, scale**2))


def test_a_head_of_small_scores_is_not_shifted():
    taken = []
    tile = streamed._forward_tile

    def spy(*args):
        jax.debug.callback(taken.append, args[-1])
        return tile(*args)

    def shifts(scale):
        taken.clear()
        x = jnp.full((1, 3, 1, 4), scale)
        with mock.patch.object(streamed, "_forward_tile", spy):
            jax.block_until_ready(jax.jit(lambda x: streamed.streamed(x, x, x, None, None))(x))
        jax.effects_barrier()
        return [bool(shift) for shift in taken]

    # Norm of a query 2 scale, times log2 e / 2, times norm of a key 2 scale: 2.89 scale^2.
    assert shifts(3.0) == [False]
    assert shifts(3.5) == [True]
