import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from quick import QUICK

from sft_jax.attention import streamed
from sft_jax.attention.dense import dot_product_attention

BOTH = ("xla", "streamed")


# --- the oracle: float64, one head at a time ------------------------------------------------------


def oracle(query, key, value, mask, weights):
    """Values, saliency and attention maps by the textbook."""
    b, q, h, e = query.shape
    values, saliency = np.zeros((b, q, h, e)), np.zeros((b, key.shape[1]))
    maps = np.zeros((b, h, q, key.shape[1]))
    for i in range(b):
        real = np.flatnonzero(mask[i])
        for head in range(h):
            for row in range(q if len(real) else 0):
                scores = [query[i, row, head] @ key[i, j, head] / np.sqrt(e) for j in real]
                exponentials = np.exp(np.array(scores) - max(scores))
                maps[i, head, row, real] = exponentials / exponentials.sum()
            values[i, :, head] = maps[i, head] @ value[i, :, head]
        saliency[i] = np.einsum("hqk,q->k", maps[i], weights[i]) / h
    return values, saliency, maps


def oracle_gradients(query, key, value, mask, weights, d_values, d_saliency):
    """Of `sum(d_values * values) + sum(d_saliency * saliency)`, by the chain rule."""
    h, e = query.shape[2:]
    maps = oracle(query, key, value, mask, weights)[2]
    grads = [np.zeros_like(x) for x in (query, key, value)]
    for i in range(query.shape[0]):
        for head in range(h):
            p, cotangent = maps[i, head], d_values[i, :, head]
            d_map = cotangent @ value[i, :, head].T + np.outer(weights[i], d_saliency[i]) / h
            d_scores = p * (d_map - (p * d_map).sum(axis=1, keepdims=True))
            grads[0][i, :, head] = d_scores @ key[i, :, head] / np.sqrt(e)
            grads[1][i, :, head] = d_scores.T @ query[i, :, head] / np.sqrt(e)
            grads[2][i, :, head] = p.T @ cotangent
    return grads


def draw_case(seed, b, q, k, h, e, masked=True):
    """Query, key, value, mask, query weights and the cotangents of both outputs, in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((b, q, h, e), (b, k, h, e), (b, k, h, e))
    query, key, value = (rng.normal(size=shape) for shape in shapes)
    mask = rng.random((b, k)) < 0.6 if masked else np.ones((b, k), bool)
    weights, d_saliency = rng.random((b, q)), rng.normal(size=(b, k))
    return query, key, value, mask, weights, rng.normal(size=(b, q, h, e)), d_saliency


def single(arrays):
    return [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in arrays]


def attend(implementation, query, key, value, mask=None, weights=None):
    return dot_product_attention(
        query, key, value, key_mask=mask, query_weights=weights, implementation=implementation
    )


def run(implementation, query, key, value, mask, weights, d_values, d_saliency):
    """Both outputs and the gradients of the three inputs, in one compilation."""

    def loss(query, key, value):
        out = attend(implementation, query, key, value, mask, weights)
        total = 0.0
        if d_values is not None:
            total += (d_values * out.values).sum()
        if d_saliency is not None:
            total += (d_saliency * out.saliency).sum()
        return total, out

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK
    )
    (_, out), grads = step(query, key, value)
    return out, grads


def tiles(forward, backward):
    """Replaces the plan with tiles of so many rows, whatever the shapes."""
    tiling = streamed.Tiling(forward, backward)
    return mock.patch.object(streamed, "plan", return_value=tiling)


def platform(name):
    return mock.patch.object(jax, "default_backend", return_value=name)


def assert_close(given, expected, atol=1e-5):
    for x, y in zip(given, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=0, atol=atol)


# --- agreement with the oracle --------------------------------------------------------------------


def test_oracle_gradients_are_those_of_the_oracle():
    case = draw_case(0, b=2, q=3, k=4, h=2, e=3)
    fixed, cotangents = case[3:5], case[5:]

    def loss(arrays):
        values, saliency, _ = oracle(*arrays, *fixed)
        return (values * cotangents[0]).sum() + (saliency * cotangents[1]).sum()

    for which, grad in enumerate(oracle_gradients(*case)):
        for index in [(0, 0, 0, 0), (1, 2, 1, 2), (1, 1, 0, 1)]:
            shifted = []
            for step in (1e-6, -1e-6):
                arrays = [x.copy() for x in case[:3]]
                arrays[which][index] += step
                shifted.append(loss(arrays))
            assert grad[index] == pytest.approx((shifted[0] - shifted[1]) / 2e-6, abs=1e-8)


def test_attention_by_hand():
    # One query, two keys, width 4: scores 0 and log(3), so weights 1/4 and 3/4.
    query = jnp.full((1, 1, 1, 4), 0.5)
    key = jnp.stack([jnp.zeros((1, 1, 4)), jnp.full((1, 1, 4), np.log(3.0))], axis=1)
    value = jnp.array([4.0, 8.0])[None, :, None, None] * jnp.ones((1, 2, 1, 4))
    for implementation in BOTH:
        out = attend(implementation, query, key, value, None, jnp.full((1, 1), 2.0))
        np.testing.assert_allclose(out.values, np.full((1, 1, 1, 4), 7.0), rtol=1e-6)
        np.testing.assert_allclose(out.saliency, [[0.5, 1.5]], rtol=1e-6)
        plain = attend(implementation, query, key, value)
        assert plain.saliency is None
        np.testing.assert_array_equal(plain.values, out.values)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(1, 3),
    q=st.integers(1, 9),
    k=st.integers(1, 9),
    h=st.integers(1, 3),
    e=st.integers(1, 4),
    forward=st.integers(1, 5),
    backward=st.integers(1, 5),
    machine=st.sampled_from(["cpu", "gpu"]),
)
def test_streamed_matches_the_oracle(seed, b, q, k, h, e, forward, backward, machine):
    case = draw_case(seed, b, q, k, h, e)
    with tiles(forward, backward), platform(machine):
        out, grads = run("streamed", *single(case))
    assert_close(out, oracle(*case[:5])[:2])
    assert_close(grads, oracle_gradients(*case))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("shape", [(2, 7, 7, 2, 3), (2, 3, 8, 1, 4), (1, 8, 3, 3, 2)])
def test_both_match_the_oracle(implementation, shape, masked):
    # Three rows of seven: several tiles and a ragged last one.
    case = draw_case(1, *shape, masked=masked)
    arrays = single(case)
    if not masked:
        arrays[3] = None
    with tiles(3, 2):
        out, grads = run(implementation, *arrays)
    assert_close(out, oracle(*case[:5])[:2])
    assert_close(grads, oracle_gradients(*case))


@pytest.mark.parametrize("implementation", BOTH)
def test_gradient_through_the_saliency_alone(implementation):
    case = list(draw_case(2, 2, 5, 6, 2, 3))
    arrays = single(case)
    arrays[5], case[5] = None, np.zeros_like(case[5])
    with tiles(2, 2):
        _, grads = run(implementation, *arrays)
    expected = oracle_gradients(*case)
    assert np.abs(expected[0]).max() > 1e-3
    assert not expected[2].any()
    assert_close(grads, expected)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_custom_gradient_against_finite_differences(machine):
    query, key, value, mask, weights = single(draw_case(3, 2, 5, 4, 2, 3)[:5])

    def outputs(query, key, value):
        return attend("streamed", query, key, value, mask, weights)

    with tiles(2, 3), platform(machine):
        check_grads(
            jax.jit(outputs),
            (query, key, value),
            order=1,
            modes=["rev"],
            atol=2e-2,
            rtol=2e-2,
        )


@pytest.mark.parametrize("implementation", BOTH)
def test_bfloat16_stays_within_its_precision(implementation):
    case = list(draw_case(4, 2, 9, 9, 2, 4))
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in case[:3]]
    arrays = [*(jnp.asarray(x, jnp.bfloat16) for x in rounded), *single(case[3:])]
    with tiles(4, 4):
        out, grads = run(implementation, *arrays)
    assert out.values.dtype == jnp.bfloat16
    assert out.saliency.dtype == jnp.float32
    assert [x.dtype for x in grads] == [jnp.bfloat16] * 3
    # Eight bits of mantissa on values of size up to about 3.
    assert_close(out, oracle(*rounded, *case[3:5])[:2], atol=0.03)
    assert_close(grads, oracle_gradients(*rounded, *case[3:]), atol=0.1)


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize("implementation", BOTH)
def test_a_sample_without_keys_gives_zeros_and_zero_gradients(implementation, machine):
    case = single(draw_case(5, 3, 4, 5, 2, 3))
    mask = np.array(case[3])
    mask[0], mask[1], mask[2] = False, True, [False, False, True, False, False]
    case[3] = jnp.asarray(mask)
    with tiles(3, 3), platform(machine):
        out, grads = run(implementation, *case)
    assert not out.values[0].any()
    assert not out.saliency[0].any()
    assert all(np.isfinite(x).all() and not x[0].any() for x in grads)
    # The only key of the last sample takes everything.
    np.testing.assert_allclose(out.values[2], np.broadcast_to(case[2][2, 2], (4, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(out.saliency[2, 2], case[4][2].sum(), rtol=1e-6)


@pytest.mark.parametrize("implementation", BOTH)
def test_masked_keys_are_as_good_as_absent(implementation):
    query, key, value, _, weights, d_values, d_saliency = single(draw_case(6, 2, 4, 6, 2, 3))
    mask = jnp.arange(6) < 4
    wild = jnp.where(mask[:, None, None], 0.0, 1e6)
    mask = jnp.broadcast_to(mask, (2, 6))
    whole, grads = run(
        implementation, query, key + wild, value - wild, mask, weights, d_values, d_saliency
    )
    short, expected = run(
        implementation, query, key[:, :4], value[:, :4], None, weights, d_values, d_saliency[:, :4]
    )
    np.testing.assert_allclose(whole.values, short.values, atol=1e-6)
    np.testing.assert_allclose(whole.saliency[:, :4], short.saliency, atol=1e-6)
    assert not whole.saliency[:, 4:].any()
    np.testing.assert_allclose(grads[0], expected[0], atol=1e-5)
    for grad, other in zip(grads[1:], expected[1:], strict=True):
        np.testing.assert_allclose(grad[:, :4], other, atol=1e-5)
        assert not grad[:, 4:].any()


@pytest.mark.parametrize("implementation", BOTH)
def test_large_scores_do_not_overflow(implementation):
    case = single(draw_case(7, 2, 5, 5, 1, 2))
    out, grads = run(implementation, 100 * case[0], 100 * case[1], *case[2:])
    assert all(np.isfinite(x).all() for x in (*out, *grads))


# --- saliency whose gradient nobody asks for --------------------------------------------------


def test_unused_saliency_costs_no_gradient():
    case = single(draw_case(8, 2, 6, 6, 2, 3))
    cotangents = []
    tile_backward = streamed._backward_tile

    def spy(block, key, value, mask, d_saliency):
        cotangents.append(d_saliency)
        return tile_backward(block, key, value, mask, d_saliency)

    with mock.patch.object(streamed, "_backward_tile", spy):
        _, ranked = run("streamed", *case[:6], None)
        assert cotangents
        assert all(x is None for x in cotangents)
        _, plain = run("streamed", *case[:4], None, case[5], None)
        cotangents.clear()
        _, zero = run("streamed", *case[:6], jnp.zeros_like(case[6]))
        assert all(x is not None for x in cotangents)
    assert_close(ranked, plain, atol=1e-6)
    assert_close(ranked, zero, atol=1e-6)


@pytest.mark.parametrize("implementation", BOTH)
def test_query_weights_are_not_differentiated(implementation):
    query, key, value, mask, weights, _, d_saliency = single(draw_case(9, 2, 4, 4, 2, 3))

    def loss(weights):
        out = attend(implementation, query, key, value, mask, weights)
        return (out.saliency * d_saliency).sum()

    assert not jax.grad(loss)(weights).any()


# --- transformations --------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", BOTH)
def test_vmap_over_an_extra_axis(implementation):
    cases = [single(draw_case(seed, 2, 5, 4, 2, 3)) for seed in (10, 11)]
    stacked = [jnp.stack(arrays) for arrays in zip(*cases, strict=True)]
    with tiles(2, 3):
        together, grads = jax.vmap(functools.partial(run, implementation))(*stacked)
        for i, case in enumerate(cases):
            out, expected = run(implementation, *case)
            assert_close([x[i] for x in together], out, atol=1e-6)
            assert_close([x[i] for x in grads], expected, atol=1e-5)
