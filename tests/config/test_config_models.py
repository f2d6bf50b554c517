"""Settings that go with a model or not: baselines, attention, mixup, what building one needs."""

import dataclasses

import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import OPTIONS, LateOptions, MbtOptions, NoOptions
from sft_jax.config.run import Config, MixupConfig, ModelConfig, TrainConfig
from sft_jax.models import registry
from sft_jax.types import ConfigError


def spec(**changes):
    return ModalitySpec(**{"name": "a", "length": 12, "feature_dim": 6, "k": 3, **changes})


# --- which model takes which settings -------------------------------------------------------------


def test_one_list_of_models():
    assert set(registry.MODELS) == set(OPTIONS)
    assert len(set(registry.MODELS.values())) == len(registry.MODELS)


@pytest.mark.parametrize("options", dict.fromkeys(OPTIONS.values()))
@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_takes_options_of_its_own_type(name, options):
    # Empty options stand for the defaults of any model.
    if options in (OPTIONS[name], NoOptions):
        assert ModelConfig(name=name, options=options()).options == OPTIONS[name]()
        return
    with pytest.raises(ConfigError) as caught:
        ModelConfig(name=name, options=options())
    words = (
        f"model.options: given {options.__name__} for model {name!r}",
        f"set options={OPTIONS[name].__name__}(...)",
    )
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_pattern_of_fixed_attention_needs_fixed_attention():
    for name in ("stride", "expressivity"):
        with pytest.raises(ConfigError, match=f"model.{name}: given 5 with attention 'dense'.*set"):
            ModelConfig(**{name: 5})
        assert getattr(ModelConfig(**{name: 5, "attention": "fixed"}), name) == 5


@pytest.mark.parametrize("name", OPTIONS)
def test_fixed_attention_is_for_sequences_of_one_modality(name):
    if registry.MODELS[name].supports_fixed_attention:
        assert build(name, (WINDOWED,), attention="fixed").config.attention == "fixed"
        return
    with pytest.raises(ConfigError, match=rf"'fixed' for model '{name}', expected 'dense'.* late"):
        build(name, (WINDOWED,), attention="fixed")


def test_fixed_attention_has_no_room_for_a_second_cls():
    late = {"name": "late", "modalities": (WINDOWED,), "options": {"duplicate_cls": True}}
    assert build(**late).config.options == LateOptions(duplicate_cls=True)
    with pytest.raises(ConfigError, match=r"'fixed' for model 'late' with duplicate_cls, exp"):
        build(**late, attention="fixed")


def test_bottlenecks_cannot_start_behind_the_last_layer():
    with pytest.raises(ConfigError, match=r"fuse_at: given 6 for 5 layers, expected at most 5"):
        build("mbt", (WINDOWED,), {"fuse_at": 6}, num_pre_layers=2, num_post_layers=3)


@pytest.mark.parametrize(
    ("pre", "post", "fuse_at", "start"),
    [(1, 11, -1, 2), (0, 3, -1, 1), (2, 3, 0, 0), (2, 3, 5, 5), (2, 0, -1, 2)],
)
def test_where_bottlenecks_start(pre, post, fuse_at, start):
    assert MbtOptions(fuse_at=fuse_at).num_unfused_layers(pre, pre + post) == start


# --- mixup ----------------------------------------------------------------------------------------


def mixed(mode="any", groups=8, batch_size=24, accumulate=1, **model):
    return Config(
        model=ModelConfig(**model),
        mixup=MixupConfig(mode=mode, groups=groups),
        train=TrainConfig(batch_size=batch_size, accumulate=accumulate),
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_mixup_is_for_the_models_that_have_it(name):
    config = dataclasses.replace(mixed(name=name, num_classes=2), modalities=(WINDOWED,))
    if registry.MODELS[name].supports_mixup:
        assert registry.build(config) is not None
        return
    with pytest.raises(ConfigError, match=f"mixup.mode: given 'any' for model '{name}', expected"):
        registry.build(config)


@pytest.mark.parametrize(
    ("mode", "depths", "works"),
    [
        ("any", (0, 1), True),
        ("any", (1, 0), True),
        ("any", (0, 0), False),
        ("within", (1, 0), True),
        ("within", (0, 3), False),
        ("fused", (0, 1), True),
        ("fused", (3, 0), False),
        ("none", (0, 0), True),
    ],
)
def test_mixup_needs_a_block_to_blend_after(mode, depths, works):
    sizes = dict(zip(("num_pre_layers", "num_post_layers"), depths, strict=True))
    if works:
        assert mixed(mode, **sizes).mixup.mode == mode
        return
    with pytest.raises(ConfigError) as caught:
        mixed(mode, **sizes)
    words = (f"mixup.mode: given {mode!r}", f"num_pre_layers {depths[0]}", f"layers {depths[1]}")
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("groups", "batch_size", "accumulate", "works"),
    [
        (8, 24, 1, True),
        (8, 24, 8, True),
        (12, 24, 4, True),
        (1, 24, 1, True),
        (7, 24, 1, False),
        (48, 24, 1, False),
        (8, 24, 3, False),
        (4, 24, 8, False),
        # Every sample alone: nobody has a partner.
        (24, 24, 1, False),
        (1, 1, 1, False),
    ],
)
def test_mixup_groups_cut_the_batch(groups, batch_size, accumulate, works):
    given = {"groups": groups, "batch_size": batch_size, "accumulate": accumulate}
    assert mixed("none", **given).mixup.groups == groups
    if works:
        assert mixed("any", **given).mixup.groups == groups
        return
    with pytest.raises(ConfigError, match=f"mixup.groups: given {groups} for batch_size"):
        mixed("any", **given)


# --- what only a model with its modalities can tell -----------------------------------------------

WINDOWED = spec(name="w", pool="max", k=None, window=4)


def build(name, modalities, options=None, **model):
    options = OPTIONS[name](**(options or {}))
    config = ModelConfig(name=name, num_classes=2, options=options, **model)
    return registry.build(Config(modalities=modalities, model=config))


@pytest.mark.parametrize(
    ("name", "modalities", "options", "words"),
    [
        ("unimodal", (spec(), WINDOWED), {}, ["options.modality", "given ''", "a, w", "name the"]),
        ("unimodal", (spec(),), {"modality": "w"}, ["options.modality", "'w'", "one of a"]),
        (
            "unimodal",
            (spec(), WINDOWED),
            {"modality": "a"},
            [
                "options.window",
                "given 0",
                "'a' has pool 'attn_topk'",
                "model 'unimodal'",
                "set it",
            ],
        ),
        (
            "unimodal",
            (spec(),),
            {"window": 13},
            ["options.window", "given 13", "12 tokens", "1 to 12"],
        ),
        (
            "concat",
            (spec(), WINDOWED),
            {},
            ["options.window", "given 0", "'a' has pool 'attn_topk'", "model 'concat'"],
        ),
        # 12 and 12 tokens, and the second CLS.
        ("concat", (WINDOWED, spec()), {"window": 26}, ["given 26", "25 tokens", "1 to 25"]),
    ],
)
def test_models_that_cannot_be_built(name, modalities, options, words):
    with pytest.raises(ConfigError) as caught:
        build(name, modalities, options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_concat_needs_a_block():
    none = {"num_pre_layers": 0, "num_post_layers": 0}
    with pytest.raises(ConfigError, match=r"num_post_layers: given 0 .*'concat'; set num_post_lay"):
        build("concat", (WINDOWED,), **none)
    assert build("concat", (WINDOWED,), num_pre_layers=0, num_post_layers=1) is not None
    assert build("unimodal", (WINDOWED,), **none) is not None


@pytest.mark.parametrize(
    ("name", "modalities", "options"),
    [
        ("unimodal", (WINDOWED,), {}),
        ("unimodal", (spec(), WINDOWED), {"modality": "w"}),
        ("unimodal", (spec(), WINDOWED), {"modality": "a", "window": 12}),
        ("concat", (WINDOWED, spec()), {}),
        ("concat", (spec(), WINDOWED), {"window": 25}),
        *((name, (spec(), WINDOWED), {}) for name in ("sft", "late", "mbt", "mult")),
    ],
)
def test_models_that_can_be_built(name, modalities, options):
    model = build(name, modalities, options)
    assert type(model) is registry.MODELS[name]
    assert model.modalities == modalities
