import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import ModelConfig
from sft_jax.models.layers import BlockConfig
from sft_jax.models.tokenizers import (
    Tokenizer,
    check_inputs,
    to_patches,
    to_tubelets,
    token_mask,
    with_cls,
)

D = 4


def tokenizer(spec, **changes):
    return Tokenizer(spec, BlockConfig.from_model(ModelConfig(embed_dim=D, num_heads=2, **changes)))


FEATURE = ModalitySpec(name="a", length=6, feature_dim=4, pool="none")
PATCH = ModalitySpec(
    name="a", length=6, feature_dim=4, tokenizer="patch", patch=(3, 2), pool="none"
)
TOKEN = ModalitySpec(name="a", length=6, feature_dim=9, tokenizer="token", pool="none")
# Six frames of 2 x 4 pixels in two channels, cut in 2 x 2 x 2: 3 x 1 x 2 tokens.
TUBELET = ModalitySpec(
    name="a",
    length=6,
    feature_dim=16,
    tokenizer="tubelet",
    frame=(2, 4, 2),
    tubelet=(2, 2, 2),
    pool="none",
)
ALL = [FEATURE, PATCH, TUBELET, TOKEN]
MASK = np.array([[True] * 6, [False, True, True, False, False, False], [False] * 6])


def raw(spec, rng, b=3):
    if spec.tokenizer == "token":
        return rng.integers(0, spec.feature_dim, (b, spec.length)).astype(np.int32)
    return rng.normal(size=(b, spec.length, spec.feature_dim)).astype(np.float32)


def test_patches_by_hand():
    # Six time steps by four features, each entry 10 * time + feature, in patches of 3 x 2.
    x = 10 * jnp.arange(6.0)[:, None] + jnp.arange(4.0)
    np.testing.assert_array_equal(
        to_patches(x[None], (3, 2))[0],
        [
            [0, 1, 10, 11, 20, 21],
            [2, 3, 12, 13, 22, 23],
            [30, 31, 40, 41, 50, 51],
            [32, 33, 42, 43, 52, 53],
        ],
    )


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.tuples(*[st.integers(1, 3)] * 2))
def test_patches_match_slices(rows, columns, patch):
    t, f = rows * patch[0], columns * patch[1]
    x = np.arange(2.0 * t * f, dtype=np.float32).reshape(2, t, f)
    made = to_patches(jnp.asarray(x), patch)
    assert made.shape == (2, rows * columns, patch[0] * patch[1])
    for i in range(rows):
        for j in range(columns):
            piece = x[
                :, i * patch[0] : (i + 1) * patch[0], j * patch[1] : (j + 1) * patch[1]
            ].reshape(2, -1)
            np.testing.assert_array_equal(made[:, i * columns + j], piece)


def test_tubelets_by_hand():
    # Two frames of 2 x 4 pixels, each entry 100 * frame + 10 * row + column, in boxes of 2 x 1 x 2.
    frame, row, column = np.ogrid[:2, :2, :4]
    x = jnp.asarray(100.0 * frame + 10 * row + column).reshape(1, 2, 8)
    np.testing.assert_array_equal(
        to_tubelets(x, (2, 4, 1), (2, 1, 2))[0],
        [[0, 1, 100, 101], [2, 3, 102, 103], [10, 11, 110, 111], [12, 13, 112, 113]],
    )


@given(
    counts=st.tuples(*[st.integers(1, 3)] * 3),
    tubelet=st.tuples(*[st.integers(1, 3)] * 3),
    channels=st.integers(1, 3),
)
def test_tubelets_match_slices(counts, tubelet, channels):
    t, height, width = (n * size for n, size in zip(counts, tubelet, strict=True))
    frame = (height, width, channels)
    video = np.random.default_rng(0).normal(size=(2, t, *frame)).astype(np.float32)
    made = to_tubelets(jnp.asarray(video.reshape(2, t, -1)), frame, tubelet)
    steps, rows, columns = tubelet
    expected = [
        video[:, i : i + steps, j : j + rows, k : k + columns].reshape(2, -1)
        for i in range(0, t, steps)
        for j in range(0, height, rows)
        for k in range(0, width, columns)
    ]
    np.testing.assert_array_equal(made, np.stack(expected, axis=1))


def test_token_masks_by_hand():
    np.testing.assert_array_equal(token_mask(jnp.asarray(MASK), FEATURE), MASK)
    np.testing.assert_array_equal(token_mask(jnp.asarray(MASK), TOKEN), MASK)
    # One real step makes both patches of its rows real.
    expected = [[True] * 4, [True, True, False, False], [False] * 4]
    np.testing.assert_array_equal(token_mask(jnp.asarray(MASK), PATCH), expected)
    # One real frame makes both tubelets of its pair real.
    expected = [[True] * 6, [True] * 4 + [False] * 2, [False] * 6]
    np.testing.assert_array_equal(token_mask(jnp.asarray(MASK), TUBELET), expected)
    np.testing.assert_array_equal(
        with_cls(jnp.asarray(MASK)), np.concatenate([np.ones((3, 1), bool), MASK], axis=1)
    )


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.tokenizer)
def test_tokens_against_numpy(spec, rng):
    x, module = raw(spec, rng), tokenizer(spec)
    params = module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(MASK))
    z, mask = module.apply(params, jnp.asarray(x), jnp.asarray(MASK))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    assert p["positions"].shape == (1, spec.num_tokens + 1, D)
    if spec.tokenizer == "token":
        body = p["embed"]["embedding"][np.where(MASK, x, 0)]
    else:
        x = np.where(MASK[..., None], x, 0)
        if spec.tokenizer == "patch":
            x = np.asarray(to_patches(jnp.asarray(x), spec.patch))
        elif spec.tokenizer == "tubelet":
            x = np.asarray(to_tubelets(jnp.asarray(x), spec.frame, spec.tubelet))
        body = x @ p["proj"]["kernel"] + p["proj"]["bias"]
    expected = np.concatenate([np.broadcast_to(p["cls"], (3, 1, D)), body], axis=1)
    np.testing.assert_allclose(z, expected + p["positions"], atol=1e-5)
    np.testing.assert_array_equal(mask, with_cls(token_mask(jnp.asarray(MASK), spec)))


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.tokenizer)
def test_what_lies_in_padding_does_not_matter(spec, rng):
    x, module = raw(spec, rng), tokenizer(spec)
    params = module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(MASK))
    clean = module.apply(params, jnp.asarray(x), jnp.asarray(MASK))[0]
    for garbage in [-1, 10**6] if spec.tokenizer == "token" else [np.nan, np.inf, -np.inf, 1e30]:
        filled = np.where(MASK if x.ndim == 2 else MASK[..., None], x, garbage).astype(x.dtype)
        out = module.apply(params, jnp.asarray(filled), jnp.asarray(MASK))[0]
        np.testing.assert_array_equal(out, clean)


@pytest.mark.parametrize("spec", [FEATURE, PATCH, TUBELET], ids=lambda spec: spec.tokenizer)
def test_every_real_value_of_a_real_token_has_a_gradient_and_no_other(spec, rng):
    x, module = jnp.asarray(raw(spec, rng)), tokenizer(spec)
    params = module.init(jax.random.key(0), x, jnp.asarray(MASK))

    def loss(x):
        z, real = module.apply(params, x, jnp.asarray(MASK))
        return jnp.where(real[..., None], z, 0).sum()

    reached = np.asarray(jax.grad(loss)(x)) != 0
    np.testing.assert_array_equal(reached, np.broadcast_to(MASK[..., None], reached.shape))


@pytest.mark.parametrize(("preset", "std"), [("paper", 1.0), ("modern", 0.02)])
def test_presets_decide_how_embeddings_start(preset, std):
    spec = ModalitySpec(name="a", length=2000, feature_dim=3, pool="none")
    params = tokenizer(spec, preset=preset).init(
        jax.random.key(0), jnp.zeros((1, 2000, 3)), jnp.ones((1, 2000), bool)
    )["params"]
    assert np.std(params["positions"]) == pytest.approx(std, rel=0.05)
    assert 0.1 * std < np.std(params["cls"]) < 4 * std


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.tokenizer)
def test_bfloat16_tokens_have_float32_parameters(spec, rng):
    x, module = jnp.asarray(raw(spec, rng)), tokenizer(spec, dtype="bfloat16")
    params = module.init(jax.random.key(0), x, jnp.asarray(MASK))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert module.apply(params, x, jnp.asarray(MASK))[0].dtype == jnp.bfloat16


def test_input_errors_say_given_expected_and_remedy():
    specs = (FEATURE, ModalitySpec(name="b", length=5, feature_dim=9, tokenizer="token", k=1))
    x, ids = jnp.zeros((2, 6, 4)), jnp.zeros((2, 5), jnp.int32)
    masks = {"a": jnp.ones((2, 6), bool), "b": jnp.ones((2, 5), bool)}
    check_inputs({"a": x, "b": ids}, masks, specs)
    cases = [
        ({"a": x}, masks, ["inputs", "['a']", "['a', 'b']", "all-false mask"]),
        ({"a": x, "b": ids, "c": x}, masks, ["inputs", "['a', 'b', 'c']"]),
        ({"a": x, "b": ids}, {"a": masks["a"]}, ["mask: given ['a']", "['a', 'b']"]),
        ({"a": x[:, :5], "b": ids}, masks, ["'a'", "(2, 5, 4)", "(b, 6, 4)", "pad or cut"]),
        ({"a": x[..., :3], "b": ids}, masks, ["'a'", "(2, 6, 3)", "(b, 6, 4)"]),
        ({"a": x, "b": x}, masks, ["'b'", "(2, 6, 4)", "expected (b, 5)"]),
        ({"a": x, "b": ids}, {**masks, "a": masks["a"][:, :5]}, ["'a'", "mask (2, 5)", "(b, 6)"]),
    ]
    for inputs, mask, words in cases:
        with pytest.raises(ValueError, match="given") as caught:
            check_inputs(inputs, mask, specs)
        assert [word for word in words if word not in str(caught.value)] == []
