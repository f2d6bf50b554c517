"""What holds for every model of the registry: any mask, any number of modalities, any pool."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import QUICK
from slow import corners

from sft_jax.config.modality import COUNTING_POOLS, POOLS, ModalitySpec
from sft_jax.config.model import (
    OPTIONS,
    ConcatOptions,
    LateOptions,
    MbtOptions,
    NoOptions,
    UnimodalOptions,
)
from sft_jax.config.run import Config, ModelConfig
from sft_jax.models import registry

B = 3
# Over the four counts of modalities every pool has its turn.
POOLS_OF = {
    1: ("cls_topk",),
    2: ("attn_kmedoids", "strided_random"),
    3: ("merge", "attn_avg", "channel_topk"),
    4: ("attn_random", "attn_topk", "random", "avg"),
}
MODEL_OPTIONS = {
    "unimodal": UnimodalOptions(modality="m0", window=2),
    "late": LateOptions(duplicate_cls=True),
    "concat": ConcatOptions(window=3),
    "mbt": MbtOptions(fuse_at=1, exchange="average"),
}


def spec_of(name, pool, length, feature_dim=3):
    size = {"k": 3} if pool in COUNTING_POOLS else {} if pool == "none" else {"window": 2}
    return ModalitySpec(name=name, length=length, feature_dim=feature_dim, pool=pool, **size)


def specs_of(count, extra=0):
    return tuple(spec_of(f"m{i}", pool, 6 + i + extra) for i, pool in enumerate(POOLS_OF[count]))


def build(name, specs, dtype="float32", **changes):
    settings_of = {
        "num_classes": 3,
        "embed_dim": 8,
        "num_heads": 2,
        "num_pre_layers": 1,
        "num_post_layers": 2,
        "options": MODEL_OPTIONS.get(name, NoOptions()),
    }
    config = ModelConfig(name=name, dtype=dtype, **{**settings_of, **changes})
    return registry.build(Config(modalities=specs, model=config))


def full(specs, b=B):
    return {spec.name: jnp.ones((b, spec.length), bool) for spec in specs}


def inputs_of(specs, seed=0, b=B):
    rng = np.random.default_rng(seed)
    return {
        spec.name: jnp.asarray(rng.normal(size=(b, spec.length, spec.feature_dim)), jnp.float32)
        for spec in specs
    }


def draw_params(model, specs, seed=1):
    """Biases too, so that none hides a mistake by being zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs_of(specs), full(specs))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes)


@functools.cache
def params_of(name, specs, **changes):
    """In float32, whatever the model computes in."""
    return draw_params(build(name, specs, **changes), specs)


@functools.cache
def apply_of(name, specs, **changes):
    return jax.jit(build(name, specs, **changes).apply, compiler_options=QUICK)


@functools.cache
def compiled(name, count, dtype, **changes):
    """Model parameters, and a program for logits and gradients of parameters and inputs."""
    specs = specs_of(count)
    model = build(name, specs, dtype, **changes)

    def loss(params, inputs, mask):
        logits = model.apply(params, inputs, mask).logits
        return (logits * jnp.arange(1.0, logits.size + 1).reshape(logits.shape)).sum(), logits

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    return params_of(name, specs, **changes), step


@st.composite
def masks_of(draw, specs):
    """Any masks; a sample may lack modalities, the last one all of them."""
    rows = []
    for b in range(B):
        row = {
            s.name: draw(st.lists(st.booleans(), min_size=s.length, max_size=s.length))
            for s in specs
        }
        for name in draw(st.lists(st.sampled_from(list(row)), max_size=len(specs), unique=True)):
            row[name] = [False] * len(row[name])
        if b < B - 1 and not any(map(any, row.values())):
            row["m0"] = [True] * len(row["m0"])
        rows.append(row)
    return {s.name: jnp.array([row[s.name] for row in rows]) for s in specs}


CASES = [
    *[
        (name, count, dtype, {})
        for name in registry.MODELS
        for count in (1, 2, 3, 4)
        for dtype in ("float32", "bfloat16")
    ],
    *[
        (name, 2, "float32", {"attention": "fixed", "stride": 3, "expressivity": 1})
        for name in ("sft", "unimodal", "mbt")
    ],
    ("sft", 1, "bfloat16", {"attention": "fixed", "stride": 3, "expressivity": 1}),
]


def name_of(case):
    name, count, dtype, changes = case
    return f"{name}-{count}-{dtype}{'-fixed' if changes else ''}"


# Every model, and every pool but `max` and `none`, which have tests of their own.
MAIN = [case for case in CASES if case[0] == "sft" or case[1] == 2]
EVERY_TIME = [
    case
    for case in MAIN
    if case in (("sft", 4, "bfloat16", {}), ("sft", 1, "float32", {}))
    or (case[1:3] == (2, "float32") and (not case[3] or case[0] == "sft"))
]


@pytest.mark.parametrize("case", corners(CASES, *EVERY_TIME), ids=name_of)
def test_any_mask_gives_finite_numbers_that_padding_does_not_reach(case):
    name, count, dtype, changes = case
    params, step = compiled(name, count, dtype, **changes)
    specs = specs_of(count)

    @settings(max_examples=8)
    @given(mask=masks_of(specs), seed=st.integers(0, 3))
    def check(mask, seed):
        inputs = inputs_of(specs, seed)
        (by_params, by_inputs), logits = step(params, inputs, mask)
        assert logits.shape == (B, 3)
        for leaf in jax.tree.leaves((logits, by_params, by_inputs)):
            assert np.isfinite(np.asarray(leaf, np.float32)).all()
        # Evaluating twice gives one answer, pools that draw included, and what lies in padding
        # changes not a bit of it.
        wild = {m: jnp.where(mask[m][..., None], x, jnp.nan) for m, x in inputs.items()}
        np.testing.assert_array_equal(step(params, wild, mask)[1], logits)
        for m, grad in by_inputs.items():
            assert not np.asarray(grad)[~np.asarray(mask[m])].any()

    check()


@pytest.mark.parametrize("name", [n for n in registry.MODELS if n != "unimodal"])
def test_a_missing_modality_reaches_nothing(name):
    """Its parameters get no gradient from a batch that lacks it."""
    params, step = compiled(name, 2, "float32")
    specs, mask = specs_of(2), full(specs_of(2))
    mask["m1"] = jnp.zeros_like(mask["m1"])
    inputs = inputs_of(specs)
    (by_params, _), logits = step(params, inputs, mask)
    by_params = by_params["params"]
    own = by_params.get("tokenizer_m1") or by_params["encoder_m1"]["tokenizer"]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(own))
    assert np.abs(logits - step(params, inputs, full(specs))[1]).max() > 1e-3


@pytest.mark.parametrize("side", corners(["left", "right"], "left"))
@pytest.mark.parametrize("name", list(registry.MODELS))
def test_padding_on_either_side_changes_no_logits(name, side):
    """With positions moved along (SPEC 1.2)."""
    assert_padding_changes_nothing(name, specs_of(3), specs_of(3, extra=4), side)


FIXED = {"attention": "fixed", "stride": 3, "expressivity": 1}
PADDED = [(pool, {}) for pool in POOLS]
PADDED += [(pool, FIXED) for pool in ("attn_topk", "cls_topk", "max")]


@pytest.mark.parametrize("side", corners(["left", "right"], "left"))
@pytest.mark.parametrize(
    ("pool", "changes"), PADDED, ids=[f"{pool}{'-fixed' if c else ''}" for pool, c in PADDED]
)
def test_padding_changes_nothing_for_any_pool(pool, changes, side):
    short, long = ((spec_of("m0", pool, length),) for length in (7, 11))
    assert_padding_changes_nothing("sft", short, long, side, num_post_layers=1, **changes)


def assert_padding_changes_nothing(name, short, long, side, **changes):
    rng = np.random.default_rng(2)
    params = params_of(name, short, **changes)

    def lengthen(path, leaf):
        if getattr(path[-1], "key", "") != "positions":
            return leaf
        cls, rest = np.split(leaf, [1], axis=1)
        other = rng.normal(size=(1, 4, leaf.shape[-1])).astype(np.float32)
        order = [cls, other, rest] if side == "left" else [cls, rest, other]
        return jnp.concatenate(order, axis=1)

    longer = jax.tree.map_with_path(lengthen, params)
    inputs, mask = inputs_of(short), full(short)
    mask["m0"] = mask["m0"].at[0, 2].set(False).at[1, :4].set(False)
    width = (4, 0) if side == "left" else (0, 4)
    more = {m: jnp.pad(x, ((0, 0), width, (0, 0)), constant_values=7.0) for m, x in inputs.items()}
    more_mask = {m: jnp.pad(x, ((0, 0), width)) for m, x in mask.items()}
    run, run_padded = (apply_of(name, specs, **changes) for specs in (short, long))
    expected = run(params, inputs, mask).logits
    np.testing.assert_allclose(run_padded(longer, more, more_mask).logits, expected, atol=1e-5)


def test_the_table_of_models_is_the_configuration_s():
    assert set(registry.MODELS) == set(OPTIONS)
    assert {pool for pools in POOLS_OF.values() for pool in pools} | {
        "max",
        "none",
        "norm_topk",
    } == set(POOLS)


# --- baselines, by what their definitions say --------------------------------------------------


def test_late_fusion_sums_the_logits_of_its_modalities():
    specs = specs_of(2)
    model = build("late", specs, options=LateOptions())
    params, inputs, mask = draw_params(model, specs), inputs_of(specs), full(specs)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    alone = [
        apply(params, inputs, {m: x if m == name else jnp.zeros_like(x) for m, x in mask.items()})
        for name in mask
    ]
    both = apply(params, inputs, mask)
    np.testing.assert_allclose(both.logits, alone[0].logits + alone[1].logits, atol=1e-5)


@pytest.mark.parametrize("exchange", ["sequential", "average"])
def test_bottlenecks_carry_from_one_modality_to_the_other(exchange):
    """Before the layer in which the bottleneck first comes back, CLS cannot know of the other."""
    specs = specs_of(2)

    def influence(fuse_at):
        options = MbtOptions(fuse_at=fuse_at, exchange=exchange)
        model = build("mbt", specs, options=options)
        params, mask = draw_params(model, specs), full(specs)
        apply = jax.jit(model.apply, compiler_options=QUICK)

        def logits(inputs):
            # The mean over modalities: twice the logits of m1 are left when m0's are taken off.
            only = {**mask, "m1": jnp.zeros_like(mask["m1"])}
            return 2 * apply(params, inputs, mask).logits - apply(params, inputs, only).logits

        inputs = inputs_of(specs)
        other = {**inputs, "m0": inputs["m0"] + 1}
        return np.abs(logits(other) - logits(inputs)).max()

    # No layer with bottlenecks at all: what m0 holds cannot matter to m1.
    assert influence(3) < 1e-4
    if exchange == "sequential":
        assert influence(2) > 1e-2  # within the layer, from m0 to m1
    else:
        assert influence(2) < 1e-4  # only in the next layer
        assert influence(1) > 1e-2


def test_unimodal_looks_at_its_modality_alone():
    specs = specs_of(2)
    model = build("unimodal", specs)
    params, inputs, mask = draw_params(model, specs), inputs_of(specs), full(specs)
    assert not any("m1" in name for name in params["params"])
    logits = model.apply(params, inputs, mask).logits
    other = model.apply(params, {**inputs, "m1": inputs["m1"] + 1}, mask).logits
    np.testing.assert_array_equal(logits, other)
    moved = model.apply(params, {**inputs, "m0": inputs["m0"] + 1}, mask).logits
    assert np.abs(moved - logits).max() > 1e-3


def test_crossmodal_streams_join_in_the_order_of_the_modalities():
    """Exchanging two modalities, parameters along with them, permutes the joined vector."""
    specs = specs_of(3)
    shapes = build("mult", specs)
    params = draw_params(shapes, specs)["params"]
    assert {name for name in params if name.startswith("cross_") and name != "cross_norm"} == {
        f"cross_{i}_{j}" for i in range(3) for j in range(3) if i != j
    }
    # Two streams of width 8 each, three of them.
    assert params["proj_in"]["kernel"].shape == (48, 48)
    assert params["memory_0"]["block"]["mlp"]["in"]["kernel"].shape == (2, 16, 64)


# --- extreme inputs -----------------------------------------------------------------------------

# Of float32, which is also bfloat16's range.
EXTREMES = {
    "huge": 1e30,
    "hugely negative": -1e30,
    "denormal": 1e-40,
    "largest denormal of an opposite sign": -1.1e-38,
    "zero": 0.0,
    "constant": 3.7,
}


def extreme(kind, specs, seed):
    """Inputs of which the first sample is extreme all over and the second in one step."""
    value, inputs = EXTREMES[kind], inputs_of(specs, seed)
    return {m: x.at[0].set(value).at[1, 2].set(value) for m, x in inputs.items()}


@pytest.mark.parametrize("case", corners(MAIN, *EVERY_TIME), ids=name_of)
def test_extreme_inputs_give_finite_numbers(case):
    """And so does a single real time step; other samples do not notice."""
    name, count, dtype, changes = case
    params, step = compiled(name, count, dtype, **changes)
    specs = specs_of(count)
    one = {m: jnp.arange(x.shape[1]) == jnp.array([[0], [2], [4]]) for m, x in full(specs).items()}
    for mask in (full(specs), one):
        plain = step(params, inputs_of(specs), mask)[1]
        for kind in EXTREMES:
            (by_params, by_inputs), logits = step(params, extreme(kind, specs, 0), mask)
            for leaf in jax.tree.leaves((logits, by_params, by_inputs)):
                assert np.isfinite(np.asarray(leaf, np.float32)).all(), kind
            np.testing.assert_array_equal(logits[2], plain[2])
