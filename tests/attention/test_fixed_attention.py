"""Attention over the fixed pattern against a dense map with everything else masked out."""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec
from quick import QUICK
from slow import corners

from sft_jax.attention import fixed_tiles
from sft_jax.attention.dense import dot_product_attention
from sft_jax.attention.fixed import fixed_attention
from sft_jax.types import ConfigError

# --- the oracle -----------------------------------------------------------------------------------


def allowed(mask, stride, expressivity):
    """`[t+1, t+1]`: which pairs of one sample the pattern has."""
    pairs = np.zeros((len(mask), len(mask)), bool)
    real = [i for i in range(1, len(mask)) if mask[i]]
    pairs[0, [0, *real]] = pairs[[0, *real], 0] = True
    for start in range(0, len(real), stride):
        block = real[start : start + stride]
        pairs[np.ix_(block, block)] = True
        pairs[np.ix_(real, block[-expressivity:])] = True
    return pairs


def oracle(query, key, value, pairs, weights):
    """Values and saliency by a dense map; rows without any pair are zero."""
    scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) / math.sqrt(query.shape[-1])
    scores = jnp.where(pairs[:, None], scores, -jnp.inf)
    largest = jnp.where(pairs.any(axis=-1)[:, None, :, None], scores.max(-1, keepdims=True), 0)
    unnormalized = jnp.exp(scores - jax.lax.stop_gradient(largest))
    total = unnormalized.sum(axis=-1, keepdims=True)
    maps = unnormalized / jnp.where(total == 0, 1, total)
    saliency = jnp.einsum("bhqk,bq->bk", maps, weights) / query.shape[2]
    return jnp.einsum("bhqk,bkhe->bqhe", maps, value), saliency


def draw_masks(seed, b, t):
    """A different kind of mask in each of the samples: left padding, holes, none real, all real."""
    rng = np.random.default_rng(seed)
    mask = rng.random((b, t + 1)) < 0.6
    mask[0] = np.arange(t + 1) > t // 3
    if b > 2:
        mask[1], mask[2] = False, True
    mask[:, 0] = True
    return mask


def draw_case(seed, b, t, h, e):
    """Query, key, value, query weights and the cotangents of both outputs."""
    rng = np.random.default_rng(seed)
    heads = [rng.normal(size=(b, t + 1, h, e)) for _ in range(4)]
    weights, d_saliency = rng.random((b, t + 1)), rng.normal(size=(b, t + 1))
    arrays = (*heads[:3], weights, heads[3], d_saliency)
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def run(attend, *case):
    """Both outputs and the gradients of the three inputs, in one compilation."""
    step = jax.jit(functools.partial(outputs_and_gradients, attend), compiler_options=QUICK)
    return step(*case)


def outputs_and_gradients(attend, query, key, value, weights, d_values, d_saliency):
    def loss(query, key, value):
        values, saliency = attend(query, key, value, weights)
        total = 0.0 if d_values is None else (d_values * values).sum()
        total += 0.0 if d_saliency is None else (d_saliency * saliency).sum()
        return total, (values, saliency)

    step = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, outputs), grads = step(query, key, value)
    return outputs, grads


def fixed(mask=None, **pattern):
    def attend(query, key, value, weights):
        return fixed_attention(query, key, value, key_mask=mask, query_weights=weights, **pattern)

    return attend


def dense(mask, b, t, stride=32, expressivity=8):
    mask = np.ones((b, t + 1), bool) if mask is None else np.asarray(mask)
    pairs = jnp.asarray(np.stack([allowed(row, stride, expressivity) for row in mask]))
    return lambda query, key, value, weights: oracle(query, key, value, pairs, weights * mask)


def assert_close(given, expected, atol=1e-5):
    for x, y in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=0, atol=atol)


def platform(name):
    return mock.patch.object(jax, "default_backend", return_value=name)


def test_the_oracles_pattern_by_hand():
    # Blocks of 2 over the real tokens 1, 2, 4, 5, 6: {1, 2}, {4, 5}, {6}; summaries 2, 5 and 6.
    mask = [True, True, True, False, True, True, True]
    expected = [
        [1, 1, 1, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 1, 1, 1],
        [1, 0, 1, 0, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(allowed(mask, 2, 1), np.array(expected, bool))


# --- agreement with the oracle --------------------------------------------------------------------


@pytest.mark.parametrize("masked", corners([False, True], True))
@pytest.mark.parametrize("t", [0, 1, 7, 31, 32, 33, 500, 1201])
def test_values_saliency_and_gradients_match_the_oracle(t, masked):
    b, h = (3, 2) if t < 500 else (1 + masked, 1)
    case = draw_case(t, b, t, h, 4)
    mask = jnp.asarray(draw_masks(t, b, t)) if masked else None
    assert_close(run(fixed(mask), *case), run(dense(mask, b, t), *case))


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("stride", "expressivity"), [(1, 1), (2, 1), (5, 3), (8, 7), (16, 1), (16, 16), (200, 8)]
)
def test_other_patterns_in_several_tiles_match_the_oracle(stride, expressivity, machine):
    t, pattern = 83, {"stride": stride, "expressivity": expressivity}
    case = draw_case(stride, 3, t, 2, 3)
    mask = jnp.asarray(draw_masks(stride, 3, t))
    sizes = {"_CPU_TILE": 1000, "_CPU_BACKWARD_TILE": 700, "_ACCELERATOR_ROWS": 32}
    with mock.patch.multiple(fixed_tiles, **sizes), platform(machine):
        given = run(fixed(mask, **pattern), *case)
    assert_close(given, run(dense(mask, 3, t, **pattern), *case))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("expressivity", [16, 40])
def test_a_summary_of_whole_blocks_is_dense_attention(expressivity, masked):
    t = 75
    case = draw_case(1, 3, t, 2, 4)
    mask = jnp.asarray(draw_masks(1, 3, t)) if masked else jnp.ones((3, t + 1), bool)

    def attend(query, key, value, weights):
        out = dot_product_attention(
            query, key, value, key_mask=mask, query_weights=weights * mask, implementation="xla"
        )
        return jnp.where(mask[:, :, None, None], out.values, 0), out.saliency

    given = run(fixed(mask if masked else None, stride=16, expressivity=expressivity), *case)
    assert_close(given, run(attend, *case))


def test_gradient_through_the_saliency_alone():
    case = draw_case(2, 3, 70, 2, 3)
    case[4] = None
    mask = jnp.asarray(draw_masks(2, 3, 70))
    given = run(fixed(mask), *case)
    expected = run(dense(mask, 3, 70), *case)
    assert np.abs(expected[1][0]).max() > 1e-3
    assert_close(given, expected)


def test_unused_saliency_costs_no_gradient():
    case = draw_case(3, 2, 40, 2, 3)
    cotangents = []
    tokens_backward = fixed_tiles._tokens_backward

    def spy(per_query, log_sum, key, value, d_saliency, slots, pattern):
        cotangents.append(d_saliency)
        return tokens_backward(per_query, log_sum, key, value, d_saliency, slots, pattern)

    with mock.patch.object(fixed_tiles, "_tokens_backward", spy):
        _, ranked = run(fixed(), *case[:5], None)
        assert cotangents
        assert all(x is None for x in cotangents)
        cotangents.clear()
        _, zero = run(fixed(), *case[:5], jnp.zeros_like(case[5]))
        assert all(x is not None for x in cotangents)
    assert_close(ranked, zero, atol=1e-6)


def test_query_weights_are_not_differentiated():
    query, key, value, weights, _, d_saliency = draw_case(4, 2, 40, 2, 3)
    loss = lambda weights: (fixed()(query, key, value, weights).saliency * d_saliency).sum()  # noqa: E731
    assert not jax.grad(loss)(weights).any()


def test_without_query_weights_there_is_no_saliency():
    query, key, value, weights = draw_case(5, 2, 40, 2, 3)[:4]
    plain = fixed_attention(query, key, value)
    assert plain.saliency is None
    expected = fixed_attention(query, key, value, query_weights=weights).values
    np.testing.assert_array_equal(plain.values, expected)


def test_bfloat16_stays_within_its_precision():
    case = draw_case(6, 3, 75, 2, 4)
    mask = jnp.asarray(draw_masks(6, 3, 75))
    rounded = [x.astype(jnp.bfloat16) for x in case[:3]]
    (values, saliency), grads = run(fixed(mask), *rounded, *case[3:])
    assert values.dtype == jnp.bfloat16
    assert saliency.dtype == jnp.float32
    assert [x.dtype for x in grads] == [jnp.bfloat16] * 3
    exact = run(dense(mask, 3, 75), *(x.astype(jnp.float32) for x in rounded), *case[3:])
    # Eight bits of mantissa on values of size up to about 3.
    assert_close((values, saliency), exact[0], atol=0.03)
    assert_close(grads, exact[1], atol=0.2)


# --- masks ----------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
)
def test_padding_changes_nothing_for_real_tokens(seed, count, padding):
    # Always 67 slots for tokens, so that one compilation serves all: padding left, in the middle
    # and right, filled with what is not zero.
    t = 67
    rng = np.random.default_rng(seed)
    places = 1 + np.sort(rng.choice(t, count, replace=False)) if sum(padding) % 2 else None
    if places is None:
        left, hole = padding[0], padding[1]
        places = 1 + left + np.arange(count) + np.where(np.arange(count) >= count // 2, hole, 0)
    places = np.concatenate([[0], places])
    case = [np.asarray(x) for x in draw_case(seed, 1, t, 1, 3)]
    front = np.arange(t + 1) <= count
    scattered = np.zeros(t + 1, bool)
    scattered[places] = True
    moved = [rng.normal(size=x.shape).astype(np.float32) for x in case]
    for x, y in zip(case, moved, strict=True):
        y[:, places] = x[:, : count + 1]
    case[4] = case[4] * front[:, None, None]
    moved[4] = moved[4] * scattered[:, None, None]
    short, short_grads = _masked_run(front[None], *case)
    long, long_grads = _masked_run(scattered[None], *moved)
    for x, y in zip((*short, *short_grads), (*long, *long_grads), strict=True):
        np.testing.assert_allclose(x[:, : count + 1], y[:, places], rtol=0, atol=1e-5)
        assert not np.any(np.asarray(y)[:, ~scattered])


@functools.cache
def _masked_step():
    def step(mask, *case):
        return outputs_and_gradients(fixed(mask, stride=8, expressivity=3), *case)

    return jax.jit(step, compiler_options=QUICK)


def _masked_run(mask, *case):
    return jax.tree.map(np.asarray, _masked_step()(mask, *case))


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_a_sample_of_masked_tokens_leaves_cls_to_itself(machine):
    case = draw_case(7, 3, 45, 2, 3)
    mask = jnp.asarray(draw_masks(7, 3, 45))
    with platform(machine):
        (values, saliency), grads = run(fixed(mask), *case)
    np.testing.assert_allclose(values[1, 0], case[2][1, 0], rtol=1e-6)
    np.testing.assert_allclose(saliency[1, 0], case[3][1, 0], rtol=1e-6)
    assert not values[1, 1:].any()
    assert not saliency[1, 1:].any()
    # One key has all the weight whatever the scores are.
    np.testing.assert_allclose(grads[0][1], 0, atol=1e-6)
    np.testing.assert_allclose(grads[1][1], 0, atol=1e-6)
    np.testing.assert_allclose(grads[2][1, 0], case[4][1, 0], rtol=1e-6)
    assert not grads[2][1, 1:].any()


def test_cls_is_real_whatever_the_mask_says():
    case = draw_case(8, 2, 20, 2, 3)
    mask = jnp.asarray(draw_masks(8, 2, 20))
    assert_close(run(fixed(mask.at[:, 0].set(False)), *case), run(fixed(mask), *case), atol=0)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_scores_neither_overflow_nor_vanish(scale):
    query, key, *rest = draw_case(9, 3, 70, 1, 2)
    mask = jnp.asarray(draw_masks(9, 3, 70))
    # CLS's own score is far below 0, and the empty slots repeat it.
    key = key.at[:, 0].set(-query[:, 0])
    case = (scale * query, scale * key, *rest)
    outputs, grads = run(fixed(mask), *case)
    expected, expected_grads = run(dense(mask, 3, 70), *case)
    assert_close(outputs, expected, atol=1e-4)
    size = max(1.0, *(float(jnp.abs(x).max()) for x in expected_grads))
    # What an exponential makes of the rounding of a score; the oracle's has another base.
    rounding = float(jnp.finfo(jnp.float32).eps) * scale**2
    assert_close(grads, expected_grads, atol=max(1e-4, rounding) * size)


# --- transformations ------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_vmap_over_an_extra_axis(machine):
    cases = [draw_case(seed, 2, 40, 2, 3) for seed in (10, 11)]
    masks = [jnp.asarray(draw_masks(seed, 2, 40)) for seed in (10, 11)]
    stacked = [jnp.stack(arrays) for arrays in zip(*cases, strict=True)]
    with platform(machine):
        together = jax.vmap(lambda mask, *case: run(fixed(mask), *case))(jnp.stack(masks), *stacked)
        for i, (mask, case) in enumerate(zip(masks, cases, strict=True)):
            assert_close(jax.tree.map(lambda x, i=i: x[i], together), run(fixed(mask), *case))


def test_shard_map_without_checks():
    case = draw_case(12, 2, 40, 2, 3)
    mask = jnp.asarray(draw_masks(12, 2, 40))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.shard_map(
        lambda mask, *case: outputs_and_gradients(fixed(mask), *case),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    assert_close(
        jax.jit(sharded, compiler_options=QUICK)(mask, *case), run(fixed(mask), *case), atol=1e-6
    )


@pytest.mark.parametrize("given", [{"stride": 0}, {"expressivity": 0}])
def test_a_pattern_without_tokens_is_refused(given):
    heads = jnp.ones((1, 3, 1, 2))
    with pytest.raises(ConfigError, match=r"given 0, expected at least 1"):
        fixed_attention(heads, heads, heads, **given)
