import dataclasses

import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig, TrainConfig
from sft_jax.efficiency import scaling
from sft_jax.efficiency.variants import variant
from sft_jax.types import ConfigError


def small(attention="dense", pool="max", **size):
    size = size or {"window": 8}
    specs = (
        ModalitySpec(name="a", length=12, feature_dim=3, pool="max", window=4),
        ModalitySpec(name="b", length=64, feature_dim=2, pool=pool, **size),
    )
    model = ModelConfig(
        num_classes=4, embed_dim=8, num_heads=2, num_post_layers=2, attention=attention
    )
    return Config(modalities=specs, model=model, train=TrainConfig(batch_size=8))


def test_length_is_that_of_the_longest_modality_which_hands_on_as_many_tokens():
    config = small()
    longer = scaling.with_setting(config, "length", 256)
    assert longer.modalities[0] == config.modalities[0]
    assert (longer.modalities[1].length, longer.modalities[1].window) == (256, 32)
    assert longer.modalities[1].num_pooled == config.modalities[1].num_pooled == 8
    counted = scaling.with_setting(small(pool="cls_topk", k=5), "length", 256).modalities[1]
    assert (counted.length, counted.k, counted.window) == (256, 5, None)
    everything = scaling.with_setting(small(pool="none", k=None), "length", 256).modalities[1]
    assert everything.num_pooled == 256
    assert scaling.with_setting(config, "length", 4).modalities[1].window == 1


@pytest.mark.parametrize(("length", "stride"), [(128, 32), (512, 64), (2048, 128), (8192, 256)])
def test_blocks_of_the_sparse_pattern_grow_with_the_root_of_the_length(length, stride):
    # stride = sqrt(expressivity length), with an expressivity of 8, to the nearest power of two.
    assert scaling.with_setting(small("fixed"), "length", length).model.stride == stride
    assert scaling.with_setting(small(), "length", length).model == small().model


def test_batch_width_and_dtype():
    config = small()
    assert scaling.with_setting(config, "batch", 3).train.batch_size == 3
    wider = scaling.with_setting(config, "width", 32).model
    assert (wider.embed_dim, wider.num_heads) == (32, 2)
    assert scaling.with_setting(config, "dtype", "bfloat16").model.dtype == "bfloat16"
    for axis, value in {"batch": 8, "width": 8, "dtype": "float32"}.items():
        assert scaling.with_setting(config, axis, value) == config


def test_k_is_what_every_modality_keeps_where_it_can():
    def kept(config, k):
        return [spec.num_pooled for spec in scaling.with_setting(config, "k", k).modalities]

    assert kept(small(), 4) == [4, 4]
    assert kept(small(), 1) == [1, 1]
    assert kept(small(), 16) == [12, 16]
    assert kept(small(pool="cls_topk", k=5), 16) == [12, 16]
    assert kept(small(pool="none", k=None), 3) == [3, 64]


def test_windows_of_the_baselines_move_along():
    concat = variant(small(), "concat")
    assert concat.model.options.window == 4
    # Of 12 + 64 tokens and the second CLS.
    assert scaling.with_setting(concat, "k", 2).model.options.window == 77 // 4
    # Four times as many, near enough.
    assert scaling.with_setting(concat, "length", 256).model.options.window == 4 * 269 // 77
    unimodal = variant(small(), "unimodal")
    assert unimodal.model.options.window == 8
    assert scaling.with_setting(unimodal, "k", 2).model.options.window == 32
    assert scaling.with_setting(unimodal, "length", 256).model.options.window == 32


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="sweep: given 'depth', expected one of length, batch"):
        scaling.with_setting(small(), "depth", 3)
    with pytest.raises(ConfigError, match="num_heads: given 2 for embed_dim 9"):
        scaling.with_setting(small(), "width", 9)
    with pytest.raises(ConfigError, match=r"model\.dtype: given 'float8'"):
        scaling.with_setting(small(), "dtype", "float8")


@pytest.mark.parametrize("axis", scaling.AXES)
def test_usual_values_fit_a_usual_model(axis):
    config = dataclasses.replace(small(), model=dataclasses.replace(small().model, embed_dim=40))
    for value in scaling.AXES[axis][0]:
        scaling.with_setting(config, axis, value)


def test_exponents_of_power_laws_by_hand():
    values = [1024, 2048, 4096]
    assert scaling.exponent(values, [5 * v for v in values]) == pytest.approx(1)
    assert scaling.exponent(values, [0.1 * v**2 for v in values]) == pytest.approx(2)
    assert scaling.exponent(values, [7, 7, 7]) == pytest.approx(0, abs=1e-12)
    # Slopes 1 and 2 between neighbours a factor of two apart: the fit's is their mean.
    assert scaling.exponent([1, 2, 4], [1, 2, 8]) == pytest.approx(1.5)


@pytest.mark.parametrize(("values", "costs"), [([1], [2]), ([1, 2], [1]), ([1, 2], [0, 1])])
def test_exponents_need_two_positive_pairs(values, costs):
    with pytest.raises(ConfigError, match="expected at least two positive values"):
        scaling.exponent(values, costs)


def test_values_are_parsed_as_the_axis_needs_them():
    assert scaling.parse_values("length", ["16", "32"]) == [16, 32]
    assert scaling.parse_values("dtype", ["bfloat16"]) == ["bfloat16"]
    assert scaling.parse_values("batch", []) == [1, 4, 16, 64]
    for text in ("long", "-4", "1.5", ""):
        with pytest.raises(ConfigError, match=f"given {text}, expected whole numbers for length"):
            scaling.parse_values("length", [text])
