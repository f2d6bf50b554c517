import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import QUICK

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import ModelConfig
from sft_jax.models.sft import SparseFusionTransformer

# Every pool and every tokenizer, in one model.
SPECS = (
    ModalitySpec(name="top", length=7, feature_dim=3, k=3),
    ModalitySpec(name="max", length=8, feature_dim=9, tokenizer="token", pool="max", window=3),
    ModalitySpec(
        name="avg", length=6, feature_dim=4, tokenizer="patch", patch=(2, 2), pool="avg", window=2
    ),
    ModalitySpec(
        name="dense",
        length=4,
        feature_dim=8,
        tokenizer="tubelet",
        frame=(2, 4, 1),
        tubelet=(2, 2, 2),
        pool="none",
    ),
)
NAMES = tuple(spec.name for spec in SPECS)
BOTH = ("xla", "streamed")
PADDING = 4  # steps, two rows of patches or tubelets
B = 2


def model_of(specs=SPECS, **changes):
    return SparseFusionTransformer(
        specs,
        ModelConfig(
            **{"num_classes": 3, "embed_dim": 8, "num_heads": 2, "num_post_layers": 1, **changes}
        ),
    )


def inputs_of(seed, specs=SPECS, b=B):
    rng = np.random.default_rng(seed)
    return {
        spec.name: jnp.asarray(rng.integers(0, spec.feature_dim, (b, spec.length)), jnp.int32)
        if spec.tokenizer == "token"
        else jnp.asarray(rng.normal(size=(b, spec.length, spec.feature_dim)), jnp.float32)
        for spec in specs
    }


def full(specs=SPECS, b=B):
    return {spec.name: jnp.ones((b, spec.length), bool) for spec in specs}


@functools.cache
def params_of(specs=SPECS, seed=0, **changes):
    model, rng = model_of(specs, **changes), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs_of(0, specs), full(specs))
    # Biases too, so that none hides a mistake by being zero.
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes)


@functools.cache
def apply_of(specs=SPECS, **changes):
    return jax.jit(model_of(specs, **changes).apply, compiler_options=QUICK)


@functools.cache
def gradient_of(specs=SPECS, **changes):
    """Loss and gradients with respect to parameters and float inputs, and the logits."""
    model = model_of(specs, **changes)

    def loss(params, floats, ids, mask):
        logits = model.apply(params, {**floats, **ids}, mask).logits
        return (logits * jnp.arange(1.0, logits.size + 1).reshape(logits.shape)).sum(), logits

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)

    def split(params, inputs, mask):
        ids = {name: x for name, x in inputs.items() if x.dtype == jnp.int32}
        floats = {name: x for name, x in inputs.items() if name not in ids}
        return step(params, floats, ids, mask)

    return split


steps = {
    spec.name: st.lists(st.booleans(), min_size=spec.length, max_size=spec.length) for spec in SPECS
}


@st.composite
def masks(draw, present=True):
    """Masks of `B` samples; with `present` every sample has at least one modality."""
    rows = [draw(st.fixed_dictionaries(steps)) for _ in range(B)]
    for row in rows:
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True)):
            row[name] = [False] * len(row[name])
        if present and not any(any(row[name]) for name in NAMES):
            row["top"] = [True] * len(row["top"])
    return {name: jnp.array([row[name] for row in rows]) for name in NAMES}


def assert_same(given, expected, atol=1e-5):
    np.testing.assert_allclose(
        np.asarray(given, np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol
    )


# --- padding ----------------------------------------------------------------------------------


def longer(spec):
    return dataclasses.replace(spec, length=spec.length + PADDING)


@functools.cache
def padded_params(side):
    """Parameters for sequences `PADDING` steps longer, positions moved with their tokens."""
    params = jax.tree.map(np.asarray, params_of())
    rng = np.random.default_rng(2)
    for spec in SPECS:
        tokenizer = params["params"][f"encoder_{spec.name}"]["tokenizer"]
        cls, rest = np.split(tokenizer["positions"], [1], axis=1)
        extra = longer(spec).num_tokens - spec.num_tokens
        other = rng.normal(size=(1, extra, cls.shape[-1])).astype(np.float32)
        order = [cls, other, rest] if side == "left" else [cls, rest, other]
        tokenizer["positions"] = np.concatenate(order, axis=1)
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, implementation):
    whole = tuple(longer(spec) for spec in SPECS)
    apply = apply_of(implementation=implementation)
    apply_padded = apply_of(whole, implementation=implementation)
    width = (PADDING, 0) if side == "left" else (0, PADDING)

    @settings(max_examples=15)
    @given(mask=masks(), seed=st.integers(0, 10**6), garbage=st.floats(-1e6, 1e6))
    def check(mask, seed, garbage):
        inputs, padded, padded_mask = inputs_of(seed), {}, {}
        for name, x in inputs.items():
            widths = [(0, 0), width] + [(0, 0)] * (x.ndim - 2)
            fill = 3 if x.dtype == jnp.int32 else garbage
            padded[name] = jnp.pad(x, widths, constant_values=fill)
            padded_mask[name] = jnp.pad(mask[name], widths[:2])
        out = apply(params_of(), inputs, mask)
        other = apply_padded(padded_params(side), padded, padded_mask)
        assert_same(other.logits, out.logits)
        for name in NAMES:
            # What is pooled is the same too; longer sequences may leave empty slots behind.
            real, more = np.asarray(out.pooled[name].mask), np.asarray(other.pooled[name].mask)
            tokens, others = out.pooled[name].tokens, other.pooled[name].tokens
            for i in range(B):
                assert_same(others[i][more[i]], tokens[i][real[i]])

    check()


# --- masks ------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    mask=masks(),
    seed=st.integers(0, 10**6),
    garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -7.0]),
    implementation=st.sampled_from(BOTH),
)
def test_garbage_in_masked_steps_changes_nothing(mask, seed, garbage, implementation):
    apply, inputs = apply_of(implementation=implementation), inputs_of(seed)
    wild = {}
    for name, x in inputs.items():
        real = mask[name] if x.ndim == 2 else mask[name][..., None]
        wild[name] = jnp.where(real, x, -(10**6) if x.dtype == jnp.int32 else garbage)
    out, other = (apply(params_of(), given, mask) for given in (inputs, wild))
    assert np.isfinite(out.logits).all()
    assert_same(other.logits, out.logits)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("xla", "float32"), ("streamed", "bfloat16")],
)
def test_no_mask_makes_a_nan(implementation, dtype):
    step = gradient_of(implementation=implementation, dtype=dtype)

    @settings(max_examples=15)
    @given(mask=masks(present=False), seed=st.integers(0, 10**6))
    def check(mask, seed):
        inputs = inputs_of(seed)
        for name, x in inputs.items():
            if x.ndim == 3:
                inputs[name] = jnp.where(mask[name][..., None], x, np.nan)
        (loss, logits), (grads, by_input) = step(params_of(), inputs, mask)
        assert logits.dtype == jnp.float32
        assert np.isfinite(loss)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, by_input)))
        for name, grad in by_input.items():
            assert not np.asarray(grad)[~np.asarray(mask[name])].any()

    check()


def test_rows_without_anything_are_finite_and_alone():
    """Such rows pad a ragged last batch: they must not disturb the others."""
    mask = {name: x.at[0].set(False) for name, x in full().items()}
    (_, logits), (grads, _) = gradient_of(implementation="xla")(params_of(), inputs_of(3), mask)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    whole = apply_of(implementation="xla")(params_of(), inputs_of(3), full())
    assert_same(logits[1], whole.logits[1])


@pytest.mark.parametrize("left_out", NAMES)
def test_a_masked_modality_is_as_good_as_none(left_out):
    """The same logits as the model that never had the modality, with the same parameters."""
    rest = tuple(spec for spec in SPECS if spec.name != left_out)
    params = {
        "params": {k: v for k, v in params_of()["params"].items() if k != f"encoder_{left_out}"}
    }
    inputs, mask = inputs_of(4), full()
    mask[left_out] = jnp.zeros_like(mask[left_out])
    out = apply_of(implementation="xla")(params_of(), inputs, mask)
    assert not out.pooled[left_out].mask.any()
    assert not out.pooled[left_out].tokens.any()
    inputs.pop(left_out)
    expected = apply_of(rest, implementation="xla")(params, inputs, full(rest))
    assert_same(out.logits, expected.logits)
    whole = apply_of(implementation="xla")(params_of(), inputs_of(4), full())
    assert np.abs(whole.logits - out.logits).max() > 1e-3


def test_an_absent_modality_gets_no_gradient():
    mask = full()
    mask["avg"] = jnp.zeros_like(mask["avg"])
    (_, _), (grads, _) = gradient_of(implementation="xla")(params_of(), inputs_of(5), mask)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["params"]["encoder_avg"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["params"]["encoder_max"]["tokenizer"]))


# --- what the model is ------------------------------------------------------------------------


def test_the_fused_sequence_is_the_sum_of_cls_then_the_pooled_tokens():
    mask, inputs = full(), inputs_of(6)
    mask["max"] = mask["max"].at[0].set(False)
    # Without layers after fusion the stack hands on what it gets.
    model = model_of(num_post_layers=0)
    apply = jax.jit(
        functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]),
        compiler_options=QUICK,
    )
    params = {"params": {k: v for k, v in params_of()["params"].items() if k != "fusion"}}
    out, state = apply(params, inputs, mask)
    state = state["intermediates"]
    cls = {name: state[f"encoder_{name}"]["__call__"][0][0] for name in NAMES}
    z = state["fusion"]["__call__"][0][0]
    present = jnp.array([[0.0], [1.0]])
    assert_same(z[:, 0], cls["top"] + present * cls["max"] + cls["avg"] + cls["dense"])
    tokens = jnp.concatenate([out.pooled[name].tokens for name in NAMES], axis=1)
    np.testing.assert_array_equal(z[:, 1:], tokens)
    masks_of = np.concatenate([out.pooled[name].mask for name in NAMES], axis=1)
    # 3 kept, 8 // 3 and 6 // 2 windows, 4 tokens.
    assert masks_of.tolist() == [[True] * 3 + [False] * 2 + [True] * 7, [True] * 12]


def test_the_order_of_the_dicts_does_not_matter():
    apply, inputs, mask = apply_of(implementation="xla"), inputs_of(7), full()
    out = apply(params_of(), inputs, mask)
    backwards = {name: inputs[name] for name in reversed(NAMES)}
    other = apply(params_of(), backwards, {name: mask[name] for name in sorted(NAMES)})
    np.testing.assert_array_equal(other.logits, out.logits)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_one_to_eight_modalities(count):
    specs = tuple(
        dataclasses.replace(SPECS[i % len(SPECS)], name=f"modality_{i}") for i in range(count)
    )
    short = {"num_pre_layers": 0, "implementation": "xla"}
    out = apply_of(specs, **short)(params_of(specs, **short), inputs_of(8, specs), full(specs))
    assert out.logits.shape == (B, 3)
    assert np.isfinite(out.logits).all()
    assert set(out.pooled) == {spec.name for spec in specs}
    assert [out.pooled[spec.name].tokens.shape for spec in specs] == [
        (B, spec.num_pooled, 8) for spec in specs
    ]


def test_rows_of_a_batch_do_not_see_each_other(sample_keys):
    apply = apply_of(implementation="xla", dropout=0.3)
    inputs, keys = inputs_of(9), sample_keys(B)
    mask = full()
    mask["top"] = mask["top"].at[0, 2:].set(False)
    for given_keys in (None, keys):
        out = apply(params_of(), inputs, mask, given_keys).logits
        flipped_keys = None if given_keys is None else keys[::-1]
        flipped = apply(
            params_of(),
            jax.tree.map(lambda x: x[::-1], inputs),
            jax.tree.map(lambda x: x[::-1], mask),
            flipped_keys,
        ).logits
        assert_same(flipped[::-1], out, atol=1e-6)
        other = {name: x.at[1].set(inputs_of(10)[name][1]) for name, x in inputs.items()}
        changed = apply(params_of(), other, mask, given_keys).logits
        assert_same(changed[0], out[0], atol=1e-6)
        assert np.abs(changed[1] - out[1]).max() > 1e-3


def test_dropout_acts_with_keys_alone(sample_keys):
    apply, inputs, mask = apply_of(implementation="xla", dropout=0.3), inputs_of(9), full()
    plain = apply(params_of(), inputs, mask, None).logits
    assert_same(plain, apply_of(implementation="xla")(params_of(), inputs, mask).logits)
    first, again, other = (
        apply(params_of(), inputs, mask, sample_keys(B, seed)).logits for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(first - other).max() > 1e-3


def test_jit_and_both_implementations_agree():
    specs, small = SPECS[:1], {"num_pre_layers": 0, "num_post_layers": 0}
    inputs, mask = inputs_of(11, specs), full(specs)
    mask["top"] = mask["top"].at[0, :2].set(False)
    params = params_of(specs, **small)
    jitted, streamed = (
        apply_of(specs, implementation=x, **small)(params, inputs, mask) for x in BOTH
    )
    plain = model_of(specs, implementation="xla", **small).apply(params, inputs, mask)
    assert_same(jitted.logits, plain.logits)
    assert_same(jitted.logits, streamed.logits)
    np.testing.assert_array_equal(jitted.pooled["top"].indices, streamed.pooled["top"].indices)
    assert_same(jitted.pooled["top"].saliency, streamed.pooled["top"].saliency, atol=1e-6)


@pytest.mark.parametrize("implementation", BOTH)
def test_bfloat16_is_close_and_its_edges_are_float32(implementation):
    # Without a pool that selects: rounding may reorder near ties.
    specs = SPECS[1:4]
    inputs, mask = inputs_of(12, specs), full(specs)
    params = params_of(specs)
    exact = apply_of(specs, implementation=implementation)(params, inputs, mask)
    apply = apply_of(specs, implementation=implementation, dtype="bfloat16")
    out = apply(params, inputs, mask)
    assert out.logits.dtype == jnp.float32
    assert {x.tokens.dtype for x in out.pooled.values()} == {jnp.dtype("bfloat16")}
    assert_same(out.logits, exact.logits, atol=0.1)
    fresh = jax.eval_shape(model_of(specs, dtype="bfloat16").init, jax.random.key(0), inputs, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_a_batch_that_is_not_the_configuration_s_is_refused():
    specs = SPECS[:2]
    model, params, inputs, mask = (
        model_of(specs),
        params_of(specs),
        inputs_of(0, specs),
        full(specs),
    )
    with pytest.raises(ValueError, match=r"inputs: given \['max'\], expected \['max', 'top'\]"):
        model.apply(params, {"max": inputs["max"]}, mask)
    with pytest.raises(ValueError, match=r"mask: given \['top'\]"):
        model.apply(params, inputs, {"top": mask["top"]})
    short = {**inputs, "top": inputs["top"][:, :6]}
    with pytest.raises(ValueError, match=r"'top': given shape \(2, 6, 3\) .* \(b, 7, 3\)"):
        model.apply(params, short, mask)
