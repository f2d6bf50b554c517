import json
from pathlib import Path

import pytest

from sft_jax.reports.seed_spread import runs_by_setting, spread_rows
from sft_jax.types import DataError


def evaluated(folder, name, top1, group=None):
    workdir = folder / name
    workdir.mkdir()
    evaluation = {
        "majority": {"class": "up", "top1": 0.5},
        "per_class": [],
        "confusion": [[10]],
        "resampled": "sample",
        "split": "test",
        "step": 1,
        "num_samples": 10,
        "metrics": {
            name: {"value": value, "low": None, "high": None}
            for name, value in (("top1", top1), ("macro_f1", None), ("loss", 1 - top1))
        },
        "group": group and {"num_groups": 2, "top1": {"value": group, "low": None, "high": None}},
    }
    (workdir / "evaluation_test.json").write_text(json.dumps(evaluation))
    return workdir


def test_mean_deviation_and_range_by_hand(tmp_path):
    runs = [
        evaluated(tmp_path, "max-0", 0.5, 1.0),
        evaluated(tmp_path, "cls-topk-0", 0.75),
        evaluated(tmp_path, "max-1", 0.7, 0.5),
        evaluated(tmp_path, "max-10", 0.6, 0.75),
    ]
    rows = spread_rows(runs, "test", "top1")
    assert rows[0] == {
        "setting": "max",
        "runs": 3,
        "top1 per sample": 0.6,
        "deviation per sample": 0.1,  # sqrt((0.01 + 0.01 + 0) / 2)
        "range per sample": "0.5000 to 0.7000",
        "top1 per group": 0.75,
        "deviation per group": 0.25,
        "range per group": "0.5000 to 1.0000",
    }
    assert rows[1]["setting"] == "cls-topk"
    assert rows[1]["deviation per sample"] is None
    assert "top1 per group" not in rows[1]
    assert spread_rows(runs[:1], "test", "loss")[0]["loss per sample"] == 0.5


def test_what_cannot_be_compared_is_named(tmp_path):
    run = evaluated(tmp_path, "max-0", 0.5)
    with pytest.raises(DataError, match=r"evaluations of \['test'\], expected one of 'valid'"):
        spread_rows([run], "valid", "top1")
    with pytest.raises(
        DataError, match=r"no metric 'mAP' on 'test'.*\['loss', 'macro_f1', 'top1'\]"
    ):
        spread_rows([run], "test", "mAP")
    with pytest.raises(DataError, match=r"no value of 'macro_f1' on 'test'"):
        spread_rows([run], "test", "macro_f1")
    with pytest.raises(DataError, match="named after setting and seed"):
        runs_by_setting([Path("runs/demo")])
