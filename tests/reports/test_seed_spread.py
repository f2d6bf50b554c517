import json
from pathlib import Path

import pytest

from sft_jax.config.io import override, to_dict
from sft_jax.config.run import Config
from sft_jax.reports.seed_spread import runs_by_setting, spread_rows
from sft_jax.types import DataError


def evaluated(folder, name, top1, group=None, changes=None, fingerprint="first"):
    workdir = folder / name
    workdir.mkdir(parents=True)
    seed = int(name.rpartition("-")[2])
    config = override(Config(), {"train.seed": seed, **(changes or {})})
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    (workdir / "data.json").write_text(json.dumps({"fingerprint": fingerprint}))
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "second"}, "max-1: found the data fingerprint second, expected first, as"),
        (
            {"changes": {"train.batch_size": 8, "optimizer.learning_rate": 0.5}},
            r"max-1: found other values of optimizer.learning_rate, train.batch_size than in",
        ),
        ({"changes": {"train.seed": 0}}, r"max: found runs with train.seed 0, 0, expected each"),
    ],
)
def test_runs_of_a_setting_must_differ_in_their_seed_alone(tmp_path, changes, message):
    first = evaluated(tmp_path, "max-0", 0.5)
    other = evaluated(tmp_path, "max-1", 0.6, **changes)
    with pytest.raises(DataError, match=message):
        spread_rows([first, other], "test", "top1")
    # Runs of another setting may differ in anything.
    other = evaluated(tmp_path, "avg-1", 0.6, **changes)
    assert len(spread_rows([first, other], "test", "top1")) == 2


def test_settings_without_effect_on_the_results_may_differ(tmp_path):
    first = evaluated(tmp_path, "max-0", 0.5)
    free = {"data.data_dir": "elsewhere", "train.keep": 5, "train.log_every": 1}
    free["train.checkpoint_every"] = "7 steps"
    other = evaluated(tmp_path, "max-1", 0.75, changes=free)
    assert spread_rows([first, other], "test", "top1")[0]["runs"] == 2
