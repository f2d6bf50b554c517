import json

import numpy as np
import pytest

from sft_jax.analysis.study import read_study, setting_rows, spread
from sft_jax.types import DataError

COST = {"num_parameters": 10, "forward_gflop": 0.0123, "tokens_in": 8, "tokens_kept": 2}


@pytest.fixture
def folder(tmp_path):
    """Two settings, two folds, two seeds; the third setting has not run."""
    names = ["sft", "dense", "late"]
    record = {"settings": [{"name": name, "overrides": {}, **COST} for name in names]}
    (tmp_path / "study.json").write_text(json.dumps(record))
    values = {"sft": [[0.8, 0.6], [0.9, 0.7]], "dense": [[0.7, 0.6], [0.9, 0.6]]}
    lines = ["setting,fold,seed,split,condition,level,metric,value"]
    for name, seeds in values.items():
        for seed, folds in enumerate(seeds):
            for fold, value in enumerate(folds):
                lines.append(f"{name},f{fold},{seed},test,complete,sample,top1,{value}")
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_means_over_folds_then_spread_over_seeds(folder):
    study = read_study(folder)
    values = study.by_seed("sft", "test", "complete", "sample", "top1")
    np.testing.assert_allclose(values, [0.7, 0.8])
    first, second = setting_rows(study)
    assert first["top1 per sample"] == "75.0 ± 7.1"
    assert first["difference per sample"] == "-"
    assert second["top1 per sample"] == "70.0 ± 7.1"
    assert second["difference per sample"] == "-5.0 ± 0.0"
    assert first["MFLOP"] == 12.3
    assert first["tokens kept"] == "2 of 8"


def test_spread_of_one_seed_is_left_out():
    assert spread(np.array([0.5])) == "50.0"
    assert spread(np.array([0.01]), sign=True) == "+1.0"


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="not found, expected the folder of a study"):
        read_study(tmp_path / "nowhere")
    study = read_study(folder)
    with pytest.raises(DataError, match="found no score"):
        study.by_seed("late", "test", "complete", "sample", "top1")
    del study.scores["sft", "test", "complete", "sample", "top1"]["f1", 1]
    with pytest.raises(DataError, match="found folds"):
        study.by_seed("sft", "test", "complete", "sample", "top1")
