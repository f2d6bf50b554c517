import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config.model import PRESETS
from sft_jax.config.run import ModelConfig
from sft_jax.models import layers
from sft_jax.models.layers import (
    BlockConfig,
    EncoderBlock,
    EncoderStack,
    LayerNorm,
    MlpResidual,
    MultiHeadAttention,
    dropout,
    fold_in,
)


def block_config(**changes):
    return BlockConfig.from_model(ModelConfig(embed_dim=8, num_heads=2, **changes))


def tokens(rng, b=3, t=5, d=8):
    return jnp.asarray(rng.normal(size=(b, t, d)), jnp.float32)


def numpy64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_statistics(rate, sample_keys):
    n = 3 * 40 * 500
    out = np.asarray(dropout(jnp.full((3, 40, 500), 2.0), rate, sample_keys(3)))
    kept = out != 0
    # The rate is rounded to 1/256; five standard deviations of a share.
    rounded = round(rate * 256) / 256
    assert kept.mean() == pytest.approx(1 - rounded, abs=5 * np.sqrt(rate * (1 - rate) / n))
    np.testing.assert_allclose(out[kept], 2 / (1 - rounded), rtol=1e-6)
    assert out.mean() == pytest.approx(2.0, abs=10 * np.sqrt(rate / (1 - rate) / n))
    # Neighbours, the four of one random word included, are dropped independently.
    for shift in (1, 2, 3, 4):
        together = (kept[..., shift:] & kept[..., :-shift]).mean()
        assert together == pytest.approx((1 - rounded) ** 2, abs=0.01)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5), (3, 2, 3)])
def test_dropout_keeps_any_shape_and_dtype(shape, sample_keys):
    for dtype in (jnp.float32, jnp.bfloat16):
        out = dropout(jnp.ones(shape, dtype), 0.5, sample_keys(3))
        assert (out.shape, out.dtype) == (shape, dtype)
        # 256 / 128
        assert set(np.unique(np.asarray(out, np.float32))) <= {0.0, 2.0}


def test_dropout_without_keys_or_rate_is_the_identity(rng, sample_keys):
    x = tokens(rng)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, sample_keys(3)), x)


def test_dropout_depends_on_the_sample_s_key_alone(sample_keys):
    x, keys = jnp.ones((4, 6, 7)), sample_keys(4)
    out = dropout(x, 0.5, keys)
    np.testing.assert_array_equal(dropout(x, 0.5, keys), out)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(dropout(x, 0.5, keys[order]), out[order])
    np.testing.assert_array_equal(dropout(x[:1], 0.5, keys[2:3]), out[2:3])
    for i in range(1, 4):
        assert (out[0] != out[i]).any()
    assert (dropout(x, 0.5, sample_keys(4, seed=1)) != out).any()


def test_dropout_passes_gradients_where_it_keeps(sample_keys):
    grad = jax.grad(lambda x: dropout(x, 0.5, sample_keys(2)).sum())(jnp.ones((2, 50)))
    np.testing.assert_array_equal(grad, dropout(jnp.ones((2, 50)), 0.5, sample_keys(2)))


def test_streams_of_keys_differ(sample_keys):
    keys = sample_keys(3)
    data = [jax.random.key_data(fold_in(keys, i)) for i in (0, 1, jnp.array(2))]
    assert len({tuple(row) for rows in data for row in np.asarray(rows)}) == 9
    assert fold_in(None, 1) is None


def test_two_sites_of_a_block_drop_differently(rng, sample_keys):
    """Attention, hidden layer and update each have a stream; `drawn` records what they use."""
    drawn, real = [], layers.dropout

    def spy(x, rate, keys):
        drawn.append(np.asarray(jax.random.key_data(keys)))
        return real(x, rate, keys)

    z, mask, keys = tokens(rng), jnp.ones((3, 5), bool), sample_keys(3)
    block = EncoderBlock(block_config(dropout=0.5))
    params = block.init(jax.random.key(0), z, mask, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "dropout", spy)
        block.apply(params, z, mask, keys)
    assert len(drawn) == 3
    assert len({tuple(row) for rows in drawn for row in rows}) == 9


# --- layer norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_against_numpy(affine, rng):
    x = rng.normal(size=(2, 3, 6)) * 3 + 5
    norm = LayerNorm(affine)
    params = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    if affine:
        scale, bias = rng.normal(size=(2, 6))
        params = {"params": {"LayerNorm_0": {"scale": scale, "bias": bias}}}
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        expected = expected * scale + bias
    else:
        assert params == {}
    np.testing.assert_allclose(norm.apply(params, jnp.float32(x)), expected, atol=1e-5)


def test_layer_norm_of_constants_and_offsets():
    # A constant row has no variance; a large offset must not cancel (float32, two passes).
    constant = LayerNorm(False).apply({}, jnp.full((1, 4), 7.0))
    np.testing.assert_array_equal(constant, np.zeros((1, 4)))
    offset = LayerNorm(False).apply({}, 1e4 + jnp.array([[-0.5, 0.5, -0.5, 0.5]]))
    np.testing.assert_allclose(offset, [[-1, 1, -1, 1]], atol=1e-4)


@pytest.mark.parametrize(("size", "kept"), [(1e-42, 0), (1e18, 1), (1e30, 0)])
def test_layer_norm_of_numbers_whose_squares_do_not_fit(size, kept):
    """They count as constant, forward and backward, and make no NaN."""
    x = jnp.array([1.0, -1.0, 3.0, -3.0])
    norm = layers.LayerNorm(affine=False)
    y, back = jax.vjp(lambda x: norm.apply({}, x), x * size)
    np.testing.assert_allclose(y, kept * x / np.sqrt(5), atol=1e-6)
    gradient = back(jnp.array([1.0, 0, 0, 0]))[0]
    assert np.isfinite(gradient).all()


def test_layer_norm_computes_in_float32_and_keeps_the_dtype(rng):
    x = jnp.asarray(rng.normal(size=(2, 64)), jnp.bfloat16)
    out = LayerNorm(False).apply({}, x)
    assert out.dtype == jnp.bfloat16
    expected = LayerNorm(False).apply({}, x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(expected, np.float32))


# --- residual blocks ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
def test_mlp_residual_against_numpy(preset, rng):
    z = tokens(rng)
    module = MlpResidual(block_config(preset=preset))
    params = module.init(jax.random.key(0), z, None)
    params = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, jnp.float32), params
    )
    p = numpy64(params)["params"]
    assert p["in"]["kernel"].shape == (8, {"paper": 8, "modern": 32}[preset])
    x = np.asarray(z, np.float64)
    norm = p["norm"]["LayerNorm_0"]
    hidden = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    hidden = (hidden * norm["scale"] + norm["bias"]) @ p["in"]["kernel"] + p["in"]["bias"]
    if preset == "paper":
        hidden = np.maximum(hidden, 0)
    else:
        # The tanh form of GELU, which the field's frameworks have used since its paper.
        hidden *= 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    expected = x + hidden @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(module.apply(params, z, None), expected, atol=1e-5)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_decide_the_norm_in_front_of_attention(preset, rng):
    block = EncoderBlock(block_config(preset=preset))
    z, mask = tokens(rng), jnp.ones((3, 5), bool)
    params = block.init(jax.random.key(0), z, mask, None)["params"]
    assert ("norm" in params["attention"]) == (preset == "modern")
    assert set(params["mlp"]) == {"norm", "in", "out"}
    again = dataclasses.asdict(PRESETS[preset])
    assert (
        again
        == {
            "paper": {
                "mlp_ratio": 1.0,
                "activation": "relu",
                "affine_attention_norm": False,
                "embedding_std": 1.0,
            },
            "modern": {
                "mlp_ratio": 4.0,
                "activation": "gelu",
                "affine_attention_norm": True,
                "embedding_std": 0.02,
            },
        }[preset]
    )


def test_packed_projection_starts_like_one_matrix(rng):
    """Xavier over fan-in d and fan-out 3 d: the bound is sqrt(6 / 4 d)."""
    z = tokens(rng, d=64)
    config = BlockConfig.from_model(ModelConfig(embed_dim=64, num_heads=4))
    module = MultiHeadAttention(config)
    params = module.init(jax.random.key(0), z, jnp.ones((3, 5), bool))["params"]
    kernel, bound = np.abs(params["qkv_kernel"]), np.sqrt(6 / (4 * 64))
    assert kernel.shape == (64, 3, 4, 16)
    assert 0.99 * bound < kernel.max() <= bound
    assert not params["qkv_bias"].any()
    assert not params["out"]["bias"].any()


def test_masked_tokens_do_not_reach_the_others(rng):
    block = EncoderBlock(block_config())
    z, mask = tokens(rng), jnp.array([[True, True, False, True, False]] * 3)
    params = block.init(jax.random.key(0), z, mask, None)
    wild = jnp.where(mask[..., None], z, 1e3)
    out, other = (block.apply(params, x, mask, None) for x in (z, wild))
    np.testing.assert_allclose(out[:, [0, 1, 3]], other[:, [0, 1, 3]], atol=1e-6)


def test_the_stack_equals_its_blocks_one_after_the_other(rng, sample_keys):
    config = block_config(preset="modern", dropout=0.3)
    z, mask, keys = tokens(rng), jnp.array([[True, True, True, False, True]] * 3), sample_keys(3)
    stack = EncoderStack(config, 3)
    params = jax.jit(stack.init)(jax.random.key(0), z, mask, None)
    leaves = jax.tree.leaves(params)
    assert all(leaf.shape[0] == 3 for leaf in leaves)
    # Every layer is drawn on its own.
    kernels = params["params"]["block"]["mlp"]["in"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    out, out_mask = jax.jit(stack.apply)(params, z, mask, keys)
    np.testing.assert_array_equal(out_mask, mask)
    expected, block = z, jax.jit(EncoderBlock(config).apply)
    for i in range(3):
        sliced = jax.tree.map(lambda leaf, i=i: leaf[i], params["params"]["block"])
        expected = block({"params": sliced}, expected, mask, fold_in(keys, i))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.abs(out - jax.jit(stack.apply)(params, z, mask, None)[0]).max() > 0.01


def test_an_empty_stack_is_the_identity(rng):
    z, mask = tokens(rng), jnp.ones((3, 5), bool)
    out, params = EncoderStack(block_config(), 0).init_with_output(jax.random.key(0), z, mask, None)
    np.testing.assert_array_equal(out[0], z)
    np.testing.assert_array_equal(out[1], mask)
    assert params == {}


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(rng, sample_keys):
    z, mask = tokens(rng).astype(jnp.bfloat16), jnp.ones((3, 5), bool)
    block = EncoderBlock(block_config(preset="modern", dtype="bfloat16", dropout=0.1))
    params = block.init(jax.random.key(0), z, mask, None)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert block.apply(params, z, mask, sample_keys(3)).dtype == jnp.bfloat16
    # No product falls back to float32 inputs.
    text = jax.make_jaxpr(lambda p, z: block.apply(p, z, mask, None))(params, z)
    products = [eqn for eqn in text.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert products
    assert all(v.aval.dtype == jnp.bfloat16 for eqn in products for v in eqn.invars)
