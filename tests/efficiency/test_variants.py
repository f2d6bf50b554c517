import dataclasses
from pathlib import Path

import pytest

from sft_jax.config.io import load
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ConcatOptions, LateOptions, MbtOptions, NoOptions
from sft_jax.config.paper import mosei, vggsound
from sft_jax.config.run import Config, MixupConfig, ModelConfig, TrainConfig
from sft_jax.efficiency.model_costs import check_complete
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.models import registry
from sft_jax.types import ConfigError


def small(**changes):
    specs = (
        ModalitySpec(name="a", length=12, feature_dim=3, pool="max", window=4),
        ModalitySpec(name="b", length=30, feature_dim=2, pool="attn_topk", k=5),
        ModalitySpec(name="c", length=7, feature_dim=2, pool="none"),
    )
    model = {"num_classes": 4, "embed_dim": 8, "num_heads": 2, "num_post_layers": 2}
    return Config(
        modalities=specs,
        model=ModelConfig(**{**model, **changes}),
        mixup=MixupConfig(mode="any", groups=2)
        if changes.get("name", "sft") == "sft"
        else MixupConfig(),
        train=TrainConfig(batch_size=8),
    )


def pools(config):
    return [(spec.pool, spec.k, spec.window) for spec in config.modalities]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("config", [small(), mosei(), vggsound(num_classes=10)])
def test_every_variant_is_a_model_of_the_same_widths_and_data(name, config):
    found = variant(config, name)
    registry.build(found)
    check_complete(found)
    families = ("unimodal", "concat", "late", "mbt", "mult")
    assert found.model.name == (name if name in families else "sft")
    assert found.mixup == MixupConfig()
    assert (found.optimizer, found.train, found.data) == (
        config.optimizer,
        config.train,
        config.data,
    )
    for setting in ("embed_dim", "num_heads", "num_pre_layers", "num_post_layers", "num_classes"):
        assert getattr(found.model, setting) == getattr(config.model, setting)
    sizes = [(spec.name, spec.length, spec.feature_dim) for spec in found.modalities]
    assert sizes == [(spec.name, spec.length, spec.feature_dim) for spec in config.modalities]


def test_what_a_variant_keeps():
    config = small()
    assert pools(variant(config, "sft")) == pools(config)
    assert pools(variant(config, "dense")) == [("none", None, None)] * 3
    # As many as before: 12 tokens in windows of 4, 5, and all 7.
    kept = [("cls_topk", 3, None), ("cls_topk", 5, None), ("cls_topk", 7, None)]
    assert pools(variant(config, "cls_topk")) == pools(variant(config, "fixed_cls_topk")) == kept


def test_attention_of_a_variant():
    def attention(config, name):
        model = variant(config, name).model
        return model.attention, model.stride, model.expressivity

    default = (ModelConfig.stride, ModelConfig.expressivity)
    dense, fixed = small(), dataclasses.replace(small(), model=fixed_model())
    assert attention(dense, "sft") == attention(dense, "cls_topk") == ("dense", *default)
    assert attention(dense, "fixed") == attention(dense, "fixed_cls_topk") == ("fixed", *default)
    # Its own pattern stays wherever the model knows one.
    for name in ("sft", "fixed", "cls_topk", "dense", "mbt", "late", "unimodal"):
        assert attention(fixed, name) == ("fixed", 4, 2)
    for name in ("concat", "mult"):
        assert attention(fixed, name) == ("dense", *default)


def fixed_model():
    return dataclasses.replace(small().model, attention="fixed", stride=4, expressivity=2)


def test_windows_of_baselines_hand_on_about_as_many_tokens():
    unimodal = variant(small(), "unimodal").model.options
    assert (unimodal.modality, unimodal.window) == ("b", 30 // 5)
    assert variant(small(), "concat").model.options.window == 4


def test_a_baseline_keeps_its_own_settings_and_no_other_model_takes_them():
    config = small(name="mbt", options=MbtOptions(num_bottlenecks=7, fuse_at=1))
    assert variant(config, "mbt").model.options == config.model.options
    assert variant(config, "sft").model.options == NoOptions()
    assert variant(config, "late").model.options == LateOptions()


def test_the_paper_s_baselines_are_variants_of_its_model():
    configs = str(Path(__file__).parents[2] / "configs" / "vggsound10{}.py")
    sft = load(configs.format(""))
    for name in ("late", "mbt", "mult"):
        assert variant(sft, name) == load(configs.format(f"_{name}")), name
    concat = load(configs.format("_concat"))
    # What it takes from the first modality there, a variant has in its own settings.
    options = ConcatOptions(window=concat.modalities[0].window)
    model = dataclasses.replace(concat.model, options=options)
    assert variant(sft, "concat") == dataclasses.replace(concat, model=model)


def test_unknown_names_and_modalities_left_to_the_data_are_refused():
    with pytest.raises(ConfigError, match="compare: given 'tiny', expected one of sft, dense"):
        variant(small(), "tiny")
    with pytest.raises(ConfigError, match="modalities: given none"):
        variant(Config(), "sft")
