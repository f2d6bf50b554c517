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
from sft_jax.models.mixup import Mixup, draw_depth, draw_lam, draw_partners, mix, mixer
from sft_jax.models.sft import SparseFusionTransformer


def mixup_of(depth, lam, partner):
    return Mixup(
        depth=jnp.int32(depth),
        lam=jnp.asarray(lam, jnp.float32),
        partner=jnp.asarray(partner, jnp.int32),
    )


# --- mix, by hand -----------------------------------------------------------------------------


def tokens():
    """Two samples of CLS and two tokens, width 1."""
    return jnp.array([[[1.0], [2.0], [4.0]], [[10.0], [20.0], [40.0]]])


def whole():
    return jnp.ones((2, 3), bool)


SWAP = {"lam": [[0.25, 0.5], [0.75, 1.0]], "partner": [1, 0]}


def test_tokens_are_blended_by_the_share_of_their_modality():
    # 0.25 * 1 + 0.75 * 10, ...; the second sample half and half.
    mixed, mask = mix(tokens(), whole(), mixup_of(2, **SWAP), modality=0, depth=2)
    np.testing.assert_array_equal(mixed[..., 0], [[7.75, 15.5, 31.0], [5.5, 11.0, 22.0]])
    assert mask.all()
    mixed, _ = mix(tokens(), whole(), mixup_of(2, **SWAP), modality=1, depth=2)
    np.testing.assert_array_equal(mixed[..., 0], [[3.25, 6.5, 13.0], [10.0, 20.0, 40.0]])


@pytest.mark.parametrize("drawn", [-1, 1, 3])
def test_other_depths_hand_on_every_bit(drawn):
    """NaN in padding, negative zero and all: where nothing is blended nothing is computed."""
    z = tokens().at[0, 2].set(jnp.nan).at[1, 0].set(-0.0)
    mask = whole().at[0, 2].set(False)
    for depth in (2, jnp.int32(2)):
        out, out_mask = mix(z, mask, mixup_of(drawn, **SWAP), modality=0, depth=depth)
        assert np.asarray(out).tobytes() == np.asarray(z).tobytes()
        np.testing.assert_array_equal(out_mask, mask)


def test_minus_one_is_before_every_block():
    for depth in range(12):
        out, _ = mix(tokens(), whole(), mixup_of(-1, **SWAP), modality=0, depth=depth)
        np.testing.assert_array_equal(out, tokens())


def test_a_masked_token_counts_as_zero_and_the_union_is_real():
    z = tokens().at[0, 1].set(jnp.nan)  # whatever stands in padding
    mask = jnp.array([[True, False, True], [True, True, False]])
    mixed, union = mix(z, mask, mixup_of(0, **SWAP), modality=0, depth=0)
    # 0.75 * 20, 0.25 * 4 of the first sample; 0.5 * 20, 0.5 * 4 of the second.
    np.testing.assert_array_equal(mixed[..., 0], [[7.75, 15.0, 1.0], [5.5, 10.0, 2.0]])
    assert union.all()
    mask = mask.at[1, 1].set(False)
    _, union = mix(z, mask, mixup_of(0, **SWAP), modality=0, depth=0)
    assert union.tolist() == [[True, False, True]] * 2


def test_cls_of_an_absent_modality_counts_as_zero():
    mask = jnp.array([[True, False, False], [True, True, True]])
    mixed, union = mix(tokens(), mask, mixup_of(0, **SWAP), modality=0, depth=0)
    np.testing.assert_array_equal(mixed[..., 0], [[7.5, 15.0, 30.0], [5.0, 10.0, 20.0]])
    assert union.all()
    # Absent from both, it stays absent.
    mixed, union = mix(
        tokens(), mask.at[1, 1:].set(False), mixup_of(0, **SWAP), modality=0, depth=0
    )
    assert not mixed.any()
    assert union.tolist() == [[True, False, False]] * 2


def test_a_blend_keeps_its_type():
    mixed, mask = mix(
        tokens().astype(jnp.bfloat16), whole(), mixup_of(0, **SWAP), modality=0, depth=0
    )
    assert (mixed.dtype, mask.dtype) == (jnp.bfloat16, jnp.bool_)


def test_a_mixer_counts_from_its_first_block():
    after = mixer(mixup_of(4, **SWAP), modality=1, first=3)
    for layer in (0, jnp.int32(2)):
        np.testing.assert_array_equal(after(tokens(), whole(), layer)[0], tokens())
    expected = mix(tokens(), whole(), mixup_of(0, **SWAP), modality=1, depth=0)[0]
    np.testing.assert_array_equal(after(tokens(), whole(), 1)[0], expected)
    assert mixer(None, modality=0, first=0) is None


def test_the_share_of_a_label_is_the_mean_over_modalities():
    lam = [[0.25, 1.0], [0.75, 0.5], [0.5, 0.0]]
    assert mixup_of(0, lam, [1, 0]).label_share.tolist() == [0.5, 0.5]
    assert mixup_of(11, lam, [1, 0]).label_share.tolist() == [0.5, 0.5]
    assert mixup_of(-1, lam, [1, 0]).label_share.tolist() == [1.0, 1.0]


# --- draws ------------------------------------------------------------------------------------


shares = jax.jit(draw_lam, static_argnums=(1, 2), compiler_options=QUICK)


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize(("groups", "size"), [(1, 6), (3, 4), (6, 1), (2, 16)])
def test_partners_are_a_permutation_of_every_group(groups, size):
    draw = jax.jit(functools.partial(draw_partners, group_size=size))
    rows = np.arange(groups * size).reshape(groups, size)
    seen = set()
    for seed in range(10):
        partner = draw(keys_of(seed, groups), weight=jnp.ones(groups * size))
        assert partner.dtype == jnp.int32
        np.testing.assert_array_equal(np.sort(np.reshape(partner, rows.shape)), rows)
        seen.add(tuple(partner.tolist()))
    assert len(seen) == 1 if size == 1 else len(seen) >= 9
    if groups > 1 and size > 1:
        # Groups draw apart from each other.
        inside = np.reshape(partner, rows.shape) - rows[:, :1]
        assert (inside[0] != inside[1]).any()


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), real=st.lists(st.booleans(), min_size=12, max_size=12))
def test_no_partner_is_a_padding_row(seed, real):
    weight = jnp.asarray(real, jnp.float32)
    free = np.asarray(draw_partners(keys_of(seed, 3), 4, jnp.ones(12)))
    partner = np.asarray(draw_partners(keys_of(seed, 3), 4, weight))
    rows = np.arange(12)
    np.testing.assert_array_equal(partner // 4, rows // 4)
    # A sample that drew padding keeps itself; nobody else's partner moves.
    np.testing.assert_array_equal(partner, np.where(np.asarray(real)[free], free, rows))
    assert all(real[j] for i, j in enumerate(partner) if real[i])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("any", {0, 1, 2, 3, 4}), ("within", {0, 1}), ("fused", {2, 3, 4})],
)
def test_depths_of_every_mode_are_drawn_alike(mode, expected):
    draw = jax.jit(jax.vmap(lambda key: draw_depth(key, mode, 2, 3)))
    depths, counts = np.unique(draw(keys_of(0, 3000)), return_counts=True)
    assert set(depths.tolist()) == expected
    np.testing.assert_allclose(counts / 3000, 1 / len(expected), atol=0.04)


def test_shares_are_beta_distributed_by_sample_and_modality():
    lam = np.asarray(shares(keys_of(0, 4000), 3, 0.3), np.float64)
    assert lam.shape == (3, 4000)
    assert lam.min() >= 0
    assert lam.max() <= 1
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)), fourth central moment by its kurtosis
    # 3 - 6 / (2 a + 3).
    variance = 1 / (4 * 1.6)
    fourth = (3 - 6 / 3.6) * variance**2
    np.testing.assert_allclose(lam.mean(axis=1), 0.5, atol=0.03)
    np.testing.assert_allclose(lam.var(axis=1), variance, rtol=0.05)
    np.testing.assert_allclose(((lam - 0.5) ** 4).mean(axis=1), fourth, rtol=0.08)
    assert np.abs(np.corrcoef(lam) - np.eye(3)).max() < 0.06
    wide = np.asarray(shares(keys_of(1, 4000), 1, 2.0), np.float64)
    np.testing.assert_allclose(wide.var(), 1 / 20, rtol=0.08)


def test_a_share_follows_its_key_alone():
    keys = keys_of(0, 8)
    drawn = shares(keys, 2, 0.3)
    np.testing.assert_array_equal(shares(keys[3:5], 2, 0.3), drawn[:, 3:5])
    assert len(np.unique(drawn)) == 16


# --- in the model -----------------------------------------------------------------------------

SPECS = (
    ModalitySpec(name="top", length=5, feature_dim=3, k=3),
    ModalitySpec(name="max", length=6, feature_dim=2, pool="max", window=2),
)
PRE, POST, B = 2, 2, 4
MODEL = SparseFusionTransformer(
    SPECS,
    ModelConfig(
        num_classes=3,
        embed_dim=8,
        num_heads=2,
        num_pre_layers=PRE,
        num_post_layers=POST,
        implementation="xla",
    ),
)


def inputs_of(seed):
    rng = np.random.default_rng(seed)
    shapes = {spec.name: (B, spec.length, spec.feature_dim) for spec in SPECS}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def full():
    return {spec.name: jnp.ones((B, spec.length), bool) for spec in SPECS}


@functools.cache
def params():
    """Numbers of numpy, so that whatever is traced may ask for them first."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), inputs_of(0), full())
    return jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.5).astype(np.float32), shapes)


TRACES = []


@functools.partial(jax.jit, compiler_options=QUICK)
def run(inputs, mask, mixup):
    TRACES.append(None)
    return MODEL.apply(params(), inputs, mask, None, mixup).logits


@functools.partial(jax.jit, compiler_options=QUICK)
def plain(inputs, mask):
    return MODEL.apply(params(), inputs, mask).logits


@functools.partial(jax.jit, compiler_options=QUICK)
def gradient(params, inputs, mask, mixup):
    def loss(params, inputs):
        logits = MODEL.apply(params, inputs, mask, None, mixup).logits
        return (logits * jnp.arange(1.0, logits.size + 1).reshape(logits.shape)).sum(), logits

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)


def draw(seed, depth, lam=None, partner=None):
    rng = np.random.default_rng(seed)
    lam = rng.uniform(0.2, 0.8, (2, B)) if lam is None else lam
    return mixup_of(depth, lam, rng.permutation(B) if partner is None else partner)


def test_one_trace_serves_every_depth_and_none():
    TRACES.clear()
    inputs, mask = inputs_of(1), full()
    mask["top"] = mask["top"].at[2].set(False)
    logits = [run(inputs, mask, draw(1, depth)) for depth in range(-1, PRE + POST)]
    # Other draws and data, too, but for the first trace of all.
    run(inputs_of(2), full(), draw(3, 0))
    assert len(TRACES) <= 1
    assert run._cache_size() == 1
    # The draw matters: every depth gives something of its own.
    for i, one in enumerate(logits):
        assert all(np.abs(one - other).max() > 1e-3 for other in logits[:i])


def test_depth_minus_one_is_the_model_without_mixup():
    mask = full()
    mask["max"] = mask["max"].at[0].set(False).at[1, 3:].set(False)
    np.testing.assert_allclose(
        run(inputs_of(2), mask, draw(2, -1)), plain(inputs_of(2), mask), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("depth", range(PRE + POST))
def test_a_sample_blended_with_itself_is_itself(depth):
    mask = full()
    mask["top"] = mask["top"].at[0].set(False).at[1, 2:].set(False)
    mixed = run(inputs_of(3), mask, draw(3, depth, partner=range(B)))
    np.testing.assert_allclose(mixed, plain(inputs_of(3), mask), rtol=0, atol=2e-5)


@pytest.mark.parametrize("depth", range(PRE + POST))
def test_shares_of_one_and_zero_are_the_sample_and_its_partner(depth):
    inputs, mask, partner = inputs_of(4), full(), [2, 0, 3, 1]
    own = plain(inputs, mask)
    kept = run(inputs, mask, draw(0, depth, np.ones((2, B)), partner))
    np.testing.assert_allclose(kept, own, rtol=0, atol=2e-5)
    swapped = run(inputs, mask, draw(0, depth, np.zeros((2, B)), partner))
    np.testing.assert_allclose(swapped, own[jnp.array(partner)], rtol=0, atol=2e-5)


def test_each_modality_has_its_share_before_fusion_and_the_first_one_after_it():
    inputs, mask, partner = inputs_of(5), full(), [1, 2, 3, 0]
    lam = np.full((2, B), 0.5)
    for depth in range(PRE + POST):
        logits = run(inputs, mask, draw(0, depth, lam, partner))
        for row in range(2):
            other = lam.copy()
            other[row] = 0.9
            changed = run(inputs, mask, draw(0, depth, other, partner))
            if depth >= PRE and row == 1:
                np.testing.assert_array_equal(changed, logits)
            else:
                assert np.abs(changed - logits).max() > 1e-3, (depth, row)


steps = {
    spec.name: st.lists(st.booleans(), min_size=spec.length, max_size=spec.length) for spec in SPECS
}


@settings(max_examples=25)
@given(
    rows=st.lists(st.fixed_dictionaries(steps), min_size=B, max_size=B),
    missing=st.lists(st.tuples(st.integers(0, B - 1), st.sampled_from(["top", "max"])), max_size=6),
    depth=st.integers(-1, PRE + POST - 1),
    seed=st.integers(0, 10**6),
    lam=st.sampled_from([None, 0.0, 1.0]),
)
def test_no_mask_makes_a_nan(rows, missing, depth, seed, lam):
    """Nor a gradient for what is masked, whatever stands there."""
    for row, name in missing:
        rows[row] = {**rows[row], name: [False] * len(rows[row][name])}
    mask = {spec.name: jnp.array([row[spec.name] for row in rows]) for spec in SPECS}
    inputs = {
        name: jnp.where(mask[name][..., None], x, jnp.nan) for name, x in inputs_of(seed).items()
    }
    mixup = draw(seed, depth, None if lam is None else np.full((2, B), lam))
    (loss, logits), (grads, by_input) = gradient(params(), inputs, mask, mixup)
    assert np.isfinite(loss)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, by_input)))
    for name, grad in by_input.items():
        assert not np.asarray(grad)[~np.asarray(mask[name])].any()


def test_a_modality_absent_from_both_contributes_nothing():
    """At a depth before fusion: the blend of two absences is an absence."""
    inputs, mask, partner = inputs_of(6), full(), [1, 0, 3, 2]
    mask["top"] = mask["top"].at[:2].set(False)
    (_, _), (_, by_input) = gradient(params(), inputs, mask, draw(0, 1, None, partner))
    assert not by_input["top"][:2].any()
    assert by_input["top"][2:].any()
    other = {**inputs, "top": inputs["top"].at[:2].set(7.0)}
    mixed, again = (run(x, mask, draw(0, 1, None, partner)) for x in (inputs, other))
    np.testing.assert_array_equal(mixed, again)


def test_a_modality_present_in_the_partner_alone_is_seen():
    inputs, mask, partner = inputs_of(7), full(), [1, 0, 3, 2]
    mask["top"] = mask["top"].at[0].set(False)
    (_, _), (_, by_input) = gradient(params(), inputs, mask, draw(0, 0, None, partner))
    assert not by_input["top"][0].any()
    changed = {**inputs, "top": inputs["top"].at[1].add(1.0)}
    first, second = (run(x, mask, draw(0, 0, None, partner)) for x in (inputs, changed))
    moved = np.abs(first - second).max(axis=1) > 1e-4
    assert moved.tolist() == [True, True, False, False]
