"""Runs trained together are the runs that would be trained alone."""

import collections
import csv
import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest

from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import (
    Config,
    Duration,
    MixupConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from sft_jax.config.study import COMPLETE, Condition, Setting, Study
from sft_jax.runs.run_folder import read_metrics
from sft_jax.studies import results, setting_runs
from sft_jax.studies.folds import FoldReader, apply_condition
from sft_jax.tasks.classification import Classification
from sft_jax.training import session
from sft_jax.types import CheckpointError, ConfigError

TASK = Classification(class_names=("a", "b"))
SPECS = (
    ModalitySpec(name="m0", length=12, feature_dim=4, tokenizer="patch", patch=(3, 2), k=3),
    ModalitySpec(name="m1", length=20, feature_dim=3, k=4),
)


def steps(count):
    return Duration(float(count), "steps")


def base(data_dir, **train):
    return Config(
        modalities=SPECS,
        model=ModelConfig(embed_dim=16, num_heads=2, num_pre_layers=0, num_post_layers=1),
        data=DataConfig(
            source="synthetic",
            options=SyntheticOptions(
                lengths=(12, 20), feature_dims=(4, 3), num_train=21, num_valid=13, num_test=6
            ),
            data_dir=str(data_dir),
        ),
        mixup=MixupConfig(mode="any", warmup=steps(3), groups=1),
        optimizer=OptimizerConfig(
            schedule="plateau", plateau_patience=0, plateau_factor=0.5, warmup=steps(2)
        ),
        train=TrainConfig(
            **{
                "duration": steps(12),
                "batch_size": 8,
                "eval_every": steps(3),
                "checkpoint_every": steps(3),
                "log_every": 3,
                **train,
            }
        ),
    )


def study(data_dir, **changes):
    # The second fold is of another size, so that splits are padded and epochs end elsewhere.
    folds = (
        Setting("a", {"data.options.seed": 1}),
        Setting("b", {"data.options.seed": 2, "data.options.num_train": 30}),
    )
    made = Study(
        name="toy",
        title="Toy",
        protocol="Two folds.",
        base=base(data_dir),
        settings=(Setting("sft"), Setting("mbt", {"model.name": "mbt", "mixup.mode": "none"})),
        folds=folds,
        seeds=(3, 5),
        conditions=(Condition("without m1", missing=("m1",)), Condition("gap", gap=0.5)),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def together(data_dir):
    made = study(data_dir)
    taken = []
    return setting_runs.train_setting(made, made.settings[0], made.folds, taken.append), taken


@pytest.mark.parametrize(("run", "fold", "seed"), [(2, 1, 3)])
def test_a_run_is_the_one_trained_alone(
    together, data_dir, run, fold, seed, tmp_path, monkeypatch, read_run
):
    trained, _ = together
    made = study(data_dir)
    mesh = session.make_mesh
    monkeypatch.setattr(session, "make_mesh", lambda train: mesh(train, jax.devices()[:1]))
    config = made.config(made.settings[0], made.folds[fold], seed)
    session.train(config, tmp_path / "run")
    assert trained.runs[run] == (fold, seed)
    alone = read_run(tmp_path / "run")
    validations = [record for record in alone.records if record["kind"] == "valid"]
    assert [curve.step for curve in trained.curves] == [3, 6, 9, 12]
    for name in ("loss", "top1"):
        got = [curve.values[f"valid {name}"][run] for curve in trained.curves]
        np.testing.assert_allclose(got, [r[name] for r in validations], rtol=2e-5)
    assert trained.chosen_step[run] == int(alone.best.step)
    rows = session.evaluate(tmp_path / "run").predictions["probabilities"]
    got = trained.answers["test", "complete"][run]["probabilities"]
    np.testing.assert_allclose(got, rows, atol=2e-5)


def test_runs_differ_by_seed_and_by_fold(together):
    trained, taken = together
    assert sum(taken) == 12
    assert trained.runs == [(0, 3), (0, 5), (1, 3), (1, 5)]
    losses = trained.curves[0].values["train loss"]
    assert losses.shape == (4,)
    assert len(set(losses.tolist())) == 4


@pytest.mark.parametrize("num_valid", [0, 5], ids=["no validation", "validation"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_every_schedule_with_and_without_validation(
    data_dir, schedule, num_valid, tmp_path, monkeypatch, capsys
):
    """A sweep and a single run take every schedule alike, or refuse it alike."""
    mesh = session.make_mesh
    monkeypatch.setattr(session, "make_mesh", lambda train: mesh(train, jax.devices()[:1]))
    setting = Setting(
        "toy",
        {
            # The model that compiles fastest.
            "model.name": "unimodal",
            "model.options.modality": "m1",
            "model.options.window": 4,
            "model.num_post_layers": 0,
            "modalities.*.pool": "none",
            "modalities.*.k": 0,
            "mixup.mode": "none",
            "mixup.warmup": steps(0),
            "optimizer.schedule": schedule,
            "optimizer.warmup": steps(0),
            "optimizer.learning_rate": 0.1,  # high, so that a wrong scale is seen
            "data.options.num_valid": num_valid,
        },
    )
    often = {"duration": steps(4), "eval_every": steps(1), "log_every": 1}
    often["checkpoint_every"] = steps(9)
    made = study(data_dir, base=base(data_dir, **often), seeds=(3,))
    config = made.config(setting, made.folds[0], 3)
    if schedule == "plateau" and not num_valid:
        with pytest.raises(ConfigError, match="given 'plateau' for data without a validation"):
            session.train(config, tmp_path)
        with pytest.raises(ConfigError, match="given 'plateau' for folds without a validation"):
            setting_runs.train_setting(made, setting, made.folds[:1])
        return
    trained = setting_runs.train_setting(made, setting, made.folds[:1])
    assert "checkpoint_every" not in capsys.readouterr().err
    outcome = session.train(config, tmp_path)
    said = "warning: train.checkpoint_every: given 9 steps (9 steps) for 4 steps"
    assert said in capsys.readouterr().err
    # Without validation the last parameters are judged.
    assert trained.chosen_step.tolist() == [outcome.best_step or 4]
    assert (("valid", "complete") in trained.answers) == bool(num_valid)
    records = read_metrics(tmp_path / "metrics.jsonl")
    for kind in ("train", "valid") if num_valid else ("train",):
        alone = [record["loss"] for record in records if record["kind"] == kind]
        together = [curve.values[f"{kind} loss"][0] for curve in trained.curves]
        np.testing.assert_allclose(together, alone, rtol=2e-5)


def test_without_a_late_enough_validation_the_last_parameters_are_judged(data_dir, capsys):
    """As for `train`, whose best checkpoint is then missing, so that the last one is taken."""
    made = study(data_dir, base=base(data_dir, duration=steps(4), best_after=steps(9)), seeds=(3,))
    trained = setting_runs.train_setting(made, made.settings[0], made.folds[:1])
    assert trained.chosen_step.tolist() == [4]
    said = "warning: setting 'sft': train.best_after: given 9 steps (9 steps) for 4 steps"
    assert said in capsys.readouterr().err
    # The last parameters have learned something: the first ones would have given other rows.
    last = trained.answers["valid", "complete"][0]["probabilities"]
    label = trained.folds[0].splits["valid"]["target"]
    loss = -np.log(np.take_along_axis(last, label[:, None], axis=1)).mean()
    assert loss == pytest.approx(trained.curves[-1].values["valid loss"][0], rel=1e-5)


@pytest.mark.parametrize(("patience", "chosen"), [(0, 4), (1, 2), (2, 4)])
def test_a_run_keeps_its_best_parameters_after_its_patience(
    data_dir, patience, chosen, monkeypatch
):
    losses = iter(np.repeat([3.0, 2.0, 2.5, 1.0], len(jax.devices())).tolist())

    def scorer(self, answers, target, weight):
        loss = next(losses)
        return lambda times: collections.defaultdict(lambda: loss)

    monkeypatch.setattr(Classification, "scorer", scorer)
    given = base(data_dir, duration=steps(4), eval_every=steps(1), patience=patience)
    made = study(data_dir, base=given, seeds=(3,))
    trained = setting_runs.train_setting(made, made.settings[0], made.folds[:1])
    assert trained.chosen_step.tolist() == [chosen]


def test_judged_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4]])
    label, group = np.array([0, 0, 1, 1]), np.array(["x", "x", "y", "y"])
    found = setting_runs.score_levels(TASK, {"probabilities": probabilities}, label, group)
    assert found["sample"]["top1"] == 0.5
    assert found["group"]["top1"] == 1.0  # (0.65, 0.35) and (0.4, 0.6)
    expected = -np.log([0.9, 0.4, 0.8, 0.4]).mean()
    assert found["sample"]["loss"] == pytest.approx(expected)
    assert set(
        setting_runs.score_levels(TASK, {"probabilities": probabilities}, label, np.arange(4))
    ) == {"sample"}


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def cost(config):
    return {"forward_gflop": 1.0, "model": config.model.name}


def test_results_are_kept_and_a_stopped_sweep_goes_on(together, data_dir, tmp_path):
    trained, _ = together
    made = study(data_dir)
    first, second = made.settings
    kept = results.Results(tmp_path, made)
    assert kept.missing(first) == list(made.folds)
    kept.add(first, trained, cost)
    again = results.Results(tmp_path, made)
    assert again.missing(first) == []
    assert again.missing(second) == list(made.folds)
    more = dataclasses.replace(made, seeds=(3, 5, 7))
    assert results.Results(tmp_path, more).missing(first) == list(made.folds)
    assert results.Results(tmp_path, more).missing(first, more.only(seeds=[5])) == []
    rows = read_csv(tmp_path / "results.csv")
    # 4 runs, of each the validation split by sample and three conditions of the test split.
    assert len(rows) == 4 * 3 * (1 + 3)
    found = {
        (row["fold"], int(row["seed"])): float(row["value"])
        for row in rows
        if (row["split"], row["condition"], row["metric"]) == ("test", "gap", "top1")
    }
    for (fold, seed), values in zip(trained.runs, trained.answers["test", "gap"], strict=True):
        label = trained.folds[fold].splits["test"]["target"]
        expected = (values["predicted"] == label).mean()
        assert found[trained.folds[fold].name, seed] == pytest.approx(expected, rel=1e-5)
    with np.load(tmp_path / "predictions" / "sft-b.npz") as file:
        saved = dict(file)
    assert saved["seed"].tolist() == [3, 5]
    np.testing.assert_allclose(
        saved["probabilities"],
        [run["probabilities"] for run in trained.answers["test", "complete"][2:]],
        rtol=1e-6,
    )
    record = json.loads((tmp_path / "study.json").read_text())
    assert [entry["name"] for entry in record["settings"]] == ["sft", "mbt"]
    assert record["settings"][0]["model"] == "sft"
    assert len(read_csv(tmp_path / "curves.csv")) == 4 * 4 * 4


def test_seeds_that_come_later_join_those_that_are_there(together, data_dir, tmp_path):
    trained, _ = together
    made = study(data_dir)
    first = made.settings[0]

    def only(seed):
        own = [i for i, (_, s) in enumerate(trained.runs) if s == seed]

        def pick(values):
            return [values[i] for i in own]

        return dataclasses.replace(
            trained,
            runs=pick(trained.runs),
            curves=[],
            answers={key: pick(values) for key, values in trained.answers.items()},
        )

    results.Results(tmp_path, made).add(made.settings[1], only(5), cost)
    results.Results(tmp_path, made).add(first, only(5), cost)
    results.Results(tmp_path, made).add(first, only(3), cost)
    with np.load(tmp_path / "predictions" / "sft-a.npz") as file:
        assert file["seed"].tolist() == [3, 5]
        expected = [run["probabilities"] for run in trained.answers["test", "complete"][:2]]
        np.testing.assert_allclose(file["probabilities"], expected, rtol=1e-6)
    # The study's first setting stays the first, whatever ran first.
    record = json.loads((tmp_path / "study.json").read_text())
    assert [entry["name"] for entry in record["settings"]] == ["sft", "mbt"]
    assert record["settings"][0]["forward_gflop"] == 1.0
    other = dataclasses.replace(trained.folds[0], ids=trained.folds[0].ids[::-1])
    moved = dataclasses.replace(only(5), folds=[other, trained.folds[1]])
    with pytest.raises(CheckpointError, match="predictions of other records"):
        results.Results(tmp_path, made).add(first, moved, cost)


def test_a_full_disk_is_named_and_the_folder_stays_whole(together, data_dir, tmp_path, monkeypatch):
    made = study(data_dir)

    def full(path, **arrays):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", full)
        with pytest.raises(CheckpointError, match=r"sft-a.*No space.*which runs what is missing$"):
            results.Results(tmp_path, made).add(made.settings[0], together[0], cost)
    assert len(results.Results(tmp_path, made).missing(made.settings[0])) == 2
    results.Results(tmp_path, made).add(made.settings[0], together[0], cost)
    assert results.Results(tmp_path, made).missing(made.settings[0]) == []


def test_a_fold_of_another_file_is_refused(together, data_dir, tmp_path):
    trained, _ = together
    made = study(data_dir)

    def of(digest):
        folds = [dataclasses.replace(fold, source_sha256=digest) for fold in trained.folds]
        return dataclasses.replace(trained, folds=folds)

    results.Results(tmp_path, made).add(made.settings[0], of("a1"), cost)
    before = (tmp_path / "results.csv").read_text()
    with pytest.raises(CheckpointError, match=r"SHA-256 b2, expected a1.*new --workdir"):
        results.Results(tmp_path, made).add(made.settings[1], of("b2"), cost)
    assert (tmp_path / "results.csv").read_text() == before
    results.Results(tmp_path, made).add(made.settings[1], of("a1"), cost)
    record = json.loads((tmp_path / "study.json").read_text())
    assert [fold["source_sha256"] for fold in record["folds"]] == ["a1", "a1"]


def test_two_sweeps_in_one_folder_keep_each_other_s_settings(together, data_dir, tmp_path):
    made = study(data_dir)
    one, other = results.Results(tmp_path, made), results.Results(tmp_path, made)
    one.add(made.settings[0], together[0], cost)
    other.add(made.settings[1], together[0], cost)
    names = {row["setting"] for row in read_csv(tmp_path / "results.csv")}
    assert names == {"sft", "mbt"}
    record = json.loads((tmp_path / "study.json").read_text())
    assert all(entry["forward_gflop"] == 1.0 for entry in record["settings"])


def test_a_folder_of_another_study_is_refused(together, data_dir, tmp_path):
    made = study(data_dir)
    results.Results(tmp_path, made).add(made.settings[0], together[0], cost)
    other = dataclasses.replace(made, settings=(Setting("sft", {"model.embed_dim": 8}),))
    with pytest.raises(CheckpointError, match=r"settings 'sft'.*new --workdir"):
        results.Results(tmp_path, other)
    other = dataclasses.replace(made, base=base(data_dir, batch_size=4))
    with pytest.raises(CheckpointError, match="differs in base"):
        results.Results(tmp_path, other)
    more = dataclasses.replace(made, settings=(*made.settings, Setting("late")))
    assert results.Results(tmp_path, more).missing(made.settings[0]) == []


def test_a_fold_is_read_once(data_dir, monkeypatch):
    made = study(data_dir)
    opened = []
    real = session.open_source
    monkeypatch.setattr(session, "open_source", lambda data: opened.append(data) or real(data))
    read = FoldReader()
    config = made.config(made.settings[0], made.folds[0], 0)
    first, again = read("a", config), read("a", dataclasses.replace(config, train=TrainConfig()))
    assert len(opened) == 1
    assert first[1] is again[1]
    longer = (SPECS[0], dataclasses.replace(SPECS[1], length=24))
    other = read("a", dataclasses.replace(config, modalities=longer))[1]
    assert other.splits["test"]["inputs"]["m1"].shape == (6, 24, 3)
    assert len(opened) == 1


def test_folds_must_be_of_one_shape(data_dir):
    made = study(data_dir)
    folds = (made.folds[0], Setting("other", {"model.embed_dim": 8}))
    with pytest.raises(ConfigError, match="folds that differ in more than their data"):
        setting_runs.train_setting(made, made.settings[0], folds)


def test_conditions_take_away_what_they_say(together):
    trained, _ = together
    batch = trained.folds[0].splits["test"]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(apply_condition(COMPLETE, batch)), jax.tree.leaves(batch), strict=True
        )
    )
    missing = apply_condition(Condition("x", missing=("m1",)), batch)
    assert not missing["mask"]["m1"].any()
    assert not missing["inputs"]["m1"].any()
    np.testing.assert_array_equal(missing["inputs"]["m0"], batch["inputs"]["m0"])
    gap = apply_condition(Condition("x", gap=0.5), batch)
    for name, real in batch["mask"].items():
        taken = real & ~gap["mask"][name]
        np.testing.assert_array_equal(taken.sum(axis=1), np.round(0.5 * real.sum(axis=1)))
        for row, own in zip(taken, real, strict=True):
            places = np.flatnonzero(row[own])  # one stretch of the real steps
            assert places.size == 0 or places[-1] - places[0] + 1 == places.size
        assert not gap["inputs"][name][~gap["mask"][name]].any()
    with pytest.raises(ConfigError, match="expected modalities of the data, m0, m1"):
        apply_condition(Condition("x", missing=("m9",)), batch)
