"""The studies of configs/studies/ can be run: every setting fits its data and builds a model."""

import dataclasses
from pathlib import Path

import pytest

from sft_jax.config.study import load_study
from sft_jax.efficiency.model_costs import study_cost
from sft_jax.models import registry

FILES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.py"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def study(request):
    return load_study(request.param)


def with_classes(config, count):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=count))


def test_every_run_is_a_configuration(study):
    for setting in study.settings:
        for fold in study.folds:
            for seed in study.seeds:
                config = study.config(setting, fold, seed)
                assert config.train.seed == seed
        registry.build(with_classes(config, 7))
    for condition in study.conditions:
        assert set(condition.missing) < {spec.name for spec in study.base.modalities}


def test_folds_hold_out_what_they_say(study):
    held_out = [study.config(study.settings[0], fold, 0).data.options for fold in study.folds]
    assert len(set(held_out)) == len(study.folds)
    if len(study.folds) > 1:
        assert [options.fold for options in held_out] == list(range(held_out[0].folds))


def test_sft_costs_a_sixth_of_dense_fusion_at_equal_width():
    study = load_study(next(path for path in FILES if path.stem == "fusion"))
    costs = {
        setting.name: study_cost(with_classes(study.config(setting, study.folds[0], 0), 7))
        for setting in study.settings
    }
    assert costs["dense"]["forward_gflop"] >= 6 * costs["sft"]["forward_gflop"]
    assert costs["dense"]["num_parameters"] == costs["sft"]["num_parameters"]
    assert (costs["sft"]["tokens_in"], costs["sft"]["tokens_kept"]) == (50, 6)
    assert costs["gyroscope"]["tokens_in"] == 25
    assert costs["gyroscope"]["tokens_kept"] is None  # pools behind its blocks
    assert costs["late"]["tokens_kept"] == 50
