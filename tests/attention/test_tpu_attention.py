"""The TPU's kernels, run by Pallas's interpreter, against the oracles of the other attentions."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_attention as dense_tests
import test_fixed_attention as fixed_tests
from jax.extend import core

from sft_jax.attention.dense import dot_product_attention
from sft_jax.attention.fixed_blocks import make_pattern
from sft_jax.attention.platform import compiling_for
from sft_jax.attention.tpu import tpu_dense
from sft_jax.attention.tpu.tpu_fixed import kernel_fixed_attention, kernel_takes
from sft_jax.attention.tpu.tpu_kernels import LANES, fits
from sft_jax.config.model import PRESETS
from sft_jax.models import layers
from sft_jax.models.layers import BlockConfig, MultiHeadAttention

assert_close = dense_tests.assert_close


def run_dense(arrays):
    return dense_tests.run("pallas", *arrays)


# --- dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    # One short tile; ragged lengths on both sides; two tiles of 256; a width that fills registers.
    "shape",
    [(2, 7, 9, 2, 3), (1, 130, 300, 1, 4), (1, 512, 40, 1, 5), (2, 3, 8, 1, 8)],
)
def test_dense_kernel_matches_the_oracle(shape, masked):
    case = dense_tests.draw_case(1, *shape, masked=masked)
    arrays = dense_tests.single(case)
    if not masked:
        arrays[3] = None
    out, grads = run_dense(arrays)
    assert_close(out, dense_tests.oracle(*case[:5])[:2])
    assert_close(grads, dense_tests.oracle_gradients(*case))


def test_gradient_through_the_saliency_alone():
    case = list(dense_tests.draw_case(2, 2, 5, 6, 2, 3))
    arrays = dense_tests.single(case)
    arrays[5], case[5] = None, np.zeros_like(case[5])
    _, grads = run_dense(arrays)
    expected = dense_tests.oracle_gradients(*case)
    assert np.abs(expected[0]).max() > 1e-3
    assert_close(grads, expected)


def test_bfloat16_stays_within_its_precision():
    case = list(dense_tests.draw_case(4, 2, 9, 9, 2, 4))
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in case[:3]]
    arrays = [*(jnp.asarray(x, jnp.bfloat16) for x in rounded), *dense_tests.single(case[3:])]
    out, grads = run_dense(arrays)
    assert out.values.dtype == jnp.bfloat16
    assert out.saliency.dtype == jnp.float32
    assert [x.dtype for x in grads] == [jnp.bfloat16] * 3
    # Eight bits of mantissa on values of size up to about 3.
    assert_close(out, dense_tests.oracle(*rounded, *case[3:5])[:2], atol=0.03)
    assert_close(grads, dense_tests.oracle_gradients(*rounded, *case[3:]), atol=0.1)


def test_masked_keys_are_as_good_as_absent_and_a_sample_without_any_gives_zeros():
    query, key, value, _, *rest = dense_tests.single(dense_tests.draw_case(6, 2, 4, 6, 2, 3))
    weights, d_values, d_saliency = rest
    mask = jnp.array([[True] * 4 + [False] * 2, [False] * 6])
    wild = jnp.where(mask[..., None, None], 0.0, 1e6)
    out, grads = run_dense([query, key + wild, value - wild, mask, *rest])
    short, expected = run_dense(
        [query, key[:, :4], value[:, :4], None, weights, d_values, d_saliency[:, :4]]
    )
    np.testing.assert_allclose(out.values[0], short.values[0], atol=1e-6)
    np.testing.assert_allclose(out.saliency[0, :4], short.saliency[0], atol=1e-6)
    np.testing.assert_allclose(grads[0][0], expected[0][0], atol=1e-5)
    for grad, other in zip(grads[1:], expected[1:], strict=True):
        np.testing.assert_allclose(grad[0, :4], other[0], atol=1e-5)
        assert not grad[0, 4:].any()
    assert not out.values[1].any()
    assert not out.saliency.at[0, :4].set(0).any()
    assert not any(grad[1].any() for grad in grads)


def test_large_scores_do_not_overflow():
    case = dense_tests.single(dense_tests.draw_case(7, 2, 5, 5, 1, 2))
    out, grads = run_dense([100 * case[0], 100 * case[1], *case[2:]])
    assert all(np.isfinite(x).all() for x in (*out, *grads))


def test_vmap_over_an_extra_axis():
    cases = [dense_tests.single(dense_tests.draw_case(seed, 1, 5, 4, 2, 3)) for seed in (10, 11)]
    stacked = [jnp.stack(arrays) for arrays in zip(*cases, strict=True)]
    together, grads = jax.vmap(functools.partial(dense_tests.run, "pallas"))(*stacked)
    for i, case in enumerate(cases):
        out, expected = run_dense(case)
        assert_close([x[i] for x in together], out, atol=1e-6)
        assert_close([x[i] for x in grads], expected, atol=1e-5)


# --- the fixed pattern ----------------------------------------------------------------------------


def kernel_fixed(mask, stride=32, expressivity=8):
    """With tokens that are query, key and value side by side, and so the projections look-ups."""
    pattern = make_pattern(stride, expressivity)

    def attend(query, key, value, weights):
        b, n, h, e = query.shape

        def project(x, parts):
            return x.reshape(b, 3, h, e, -1).swapaxes(0, 1)[parts]

        packed = jnp.stack([query, key, value], axis=2).reshape(b, n, -1)
        tokens, saliency = kernel_fixed_attention(
            packed,
            project,
            lambda values: values.reshape(b, h * e, -1),
            key_mask=mask,
            query_weights=weights,
            pattern=pattern,
        )
        return tokens.reshape(query.shape), saliency

    return attend


@pytest.mark.parametrize(
    # Several tiles; one block a tile and longer than 128; a summary that is the whole block; one
    # token.
    ("t", "stride", "expressivity", "masked"),
    [
        (150, 32, 8, True),
        pytest.param(150, 32, 8, False, marks=pytest.mark.slow),
        pytest.param(140, 4, 3, True, marks=pytest.mark.slow),
        (300, 256, 8, True),
        (40, 8, 8, True),
        (1, 32, 8, False),
    ],
)
def test_fixed_kernel_matches_the_oracle(t, stride, expressivity, masked):
    b = 3 if masked else 1
    case = fixed_tests.draw_case(t, b, t, 2, 3)
    mask = jnp.asarray(fixed_tests.draw_masks(t, b, t)) if masked else None
    pattern = {"stride": stride, "expressivity": expressivity}
    given = fixed_tests.run(kernel_fixed(mask, **pattern), *case)
    expected = fixed_tests.run(fixed_tests.dense(mask, b, t, **pattern), *case)
    fixed_tests.assert_close(given, expected)


def test_fixed_kernel_without_saliency():
    query, key, value, weights = fixed_tests.draw_case(2, 2, 70, 1, 4)[:4]
    attend = jax.jit(kernel_fixed(jnp.asarray(fixed_tests.draw_masks(2, 2, 70))))
    plain, saliency = attend(query, key, value, None)
    assert saliency is None
    np.testing.assert_array_equal(plain, attend(query, key, value, weights)[0])


def test_fixed_kernel_has_a_gradient_through_the_saliency_alone():
    case = fixed_tests.draw_case(2, 2, 70, 1, 4)
    case[4] = None
    mask = jnp.asarray(fixed_tests.draw_masks(2, 2, 70))
    expected = fixed_tests.run(fixed_tests.dense(mask, 2, 70), *case)
    assert np.abs(expected[1][0]).max() > 1e-3
    fixed_tests.assert_close(fixed_tests.run(kernel_fixed(mask), *case), expected)


def test_fixed_kernel_in_bfloat16_stays_within_its_precision():
    case = fixed_tests.draw_case(6, 3, 75, 2, 4)
    mask = jnp.asarray(fixed_tests.draw_masks(6, 3, 75))
    rounded = [x.astype(jnp.bfloat16) for x in case[:3]]
    (values, saliency), grads = fixed_tests.run(kernel_fixed(mask), *rounded, *case[3:])
    assert values.dtype == jnp.bfloat16
    assert saliency.dtype == jnp.float32
    exact = fixed_tests.run(
        fixed_tests.dense(mask, 3, 75), *(x.astype(jnp.float32) for x in rounded), *case[3:]
    )
    fixed_tests.assert_close((values, saliency), exact[0], atol=0.03)
    fixed_tests.assert_close(grads, exact[1], atol=0.2)


# --- what a TPU is given --------------------------------------------------------------------------


def kernels_of(jaxpr):
    """The parameters of every kernel called anywhere in a jaxpr."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            found.append(eqn.params)
            continue
        for entry in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(entry, core.Jaxpr | core.ClosedJaxpr):
                found += kernels_of(getattr(entry, "jaxpr", entry))
    return found


def dense_gradient(query, mask, weights, share=1.0):
    def loss(query):
        out = dot_product_attention(query, query, query, key_mask=mask, query_weights=weights)
        total = (out.values.astype(jnp.float32) ** 2).sum()
        return total if share is None else total + share * (out.saliency**2).sum()

    return jax.grad(loss)(query)


def fixed_gradient(query, mask, weights):
    b, t, h, e = query.shape
    block = BlockConfig(
        embed_dim=h * e,
        num_heads=h,
        style=PRESETS["paper"],
        dropout=0.0,
        implementation="auto",
        dtype=query.dtype,
        attention="fixed",
    )
    module, x = MultiHeadAttention(block), query.reshape(b, t, -1)
    variables = module.init(jax.random.key(0), x, mask, weights)

    def loss(x):
        values, saliency = module.apply(variables, x, mask, weights)
        return (values.astype(jnp.float32) ** 2).sum() + (saliency**2).sum()

    return jax.grad(loss)(x)


def arguments(b, t, h, e, dtype):
    shapes = ((b, t, h, e), dtype), ((b, t), bool), ((b, t), jnp.float32)
    return [jax.ShapeDtypeStruct(*x) for x in shapes]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("gradient", [dense_gradient, fixed_gradient])
def test_a_tpu_gets_kernels_and_no_map(gradient, dtype):
    # Lowering for a TPU takes none, nor its compiler.
    with compiling_for("tpu"):
        traced = jax.jit(gradient).trace(*arguments(2, 300, 2, 8, dtype))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    # Attention forward and backward; tokens, weights and saliency to their slots and back.
    assert text.count("tpu_custom_call") >= 2
    assert not {"300x300", "gather", "scatter", "sort"} & set(re.findall(r"\w+", text))


def test_kernels_state_the_bytes_of_their_operands():
    b, t, h, e = 2, 256, 3, 8
    with compiling_for("tpu"):
        jaxpr = jax.make_jaxpr(dense_gradient)(*arguments(b, t, h, e, jnp.bfloat16))
    stated = [params["cost_estimate"] for params in kernels_of(jaxpr.jaxpr)]
    heads, row, sample = 2 * b * h * t * e, 4 * b * h * t, 4 * b * t
    # Query, key, value, values; log-sum-exp; weights, bias, saliency.
    forward = 4 * heads + row + 3 * sample
    # These four, their cotangent, three gradients; log-sum-exp; weights, bias, saliency's gradient.
    backward = 8 * heads + row + 3 * sample
    assert [x.bytes_accessed for x in stated] == [forward, backward]
    assert [x.transcendentals for x in stated] == [b * h * t * t] * 2
    # Scores with the row of the bias (16), values (8), saliency (1).
    assert stated[0].flops == 2 * (16 + 8 + 1) * b * h * t * t


def test_unused_saliency_costs_no_gradient():
    b, t, h, e = 1, 128, 1, 8
    given = arguments(b, t, h, e, jnp.bfloat16)
    with compiling_for("tpu"):
        jaxprs = [
            jax.make_jaxpr(functools.partial(dense_gradient, share=share))(*given)
            for share in (1.0, None)
        ]
    used, unused = (
        [params["cost_estimate"].flops for params in kernels_of(jaxpr.jaxpr)] for jaxpr in jaxprs
    )
    assert used[0] == unused[0]
    # What it adds to the cotangent of the map, and to the correction of each row.
    assert used[1] - unused[1] == 4 * b * h * t * t


def test_keys_that_leave_no_room_are_not_taken():
    assert fits(7168, LANES)
    assert not fits(7168 + LANES, LANES)
    assert tpu_dense.kernel_fits(7168)
    assert not tpu_dense.kernel_fits(7169)
    # A quarter of the tokens are summaries.
    with compiling_for("tpu"):
        assert kernel_takes(16384, make_pattern(32, 8))
        assert not kernel_takes(16384, make_pattern(32, 32))
        # Tiles that do not hold whole blocks, and nothing to attend to.
        assert not kernel_takes(300, make_pattern(48, 8))
        assert not kernel_takes(0, make_pattern(32, 8))
    assert not kernel_takes(16384, make_pattern(32, 8))


def test_the_layer_gives_the_same_by_kernel_and_without(rng):
    b, t, h, e = 2, 150, 2, 4
    query = jnp.asarray(rng.normal(size=(b, t, h, e)), jnp.float32)
    mask = jnp.asarray(rng.random((b, t)) < 0.7).at[:, 0].set(True)
    # The loss also looks at masked rows, whose values are zero either way, as is the fresh bias.
    arrays = query, mask, jnp.asarray(rng.random((b, t)), jnp.float32)
    expected = jax.jit(fixed_gradient, compiler_options=dense_tests.QUICK)(*arrays)
    with mock.patch.object(layers, "kernel_takes", return_value=True):
        given = jax.jit(fixed_gradient, compiler_options=dense_tests.QUICK)(*arrays)
    np.testing.assert_allclose(given, expected, atol=1e-5)
