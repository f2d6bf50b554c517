"""A new task is one class and one entry in one table: nothing else has to know of it."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax import tasks
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, Duration, ModelConfig, TaskConfig, TrainConfig
from sft_jax.config.study import Setting, Study
from sft_jax.reports.report_writer import read_document, write_report
from sft_jax.runs.metric_log import MetricLog
from sft_jax.runs.study_folder import read_study_folder
from sft_jax.studies.results import Results
from sft_jax.studies.setting_runs import train_setting
from sft_jax.tasks.base import Metric, Task
from sft_jax.training import session
from sft_jax.training.evaluation import collect
from sft_jax.training.predictor import load
from sft_jax.training.recorder import Recorder
from sft_jax.training.sharding import make_mesh, put_batch
from sft_jax.training.trainer import Trainer
from sft_jax.types import A_CLASS, ConfigError


@dataclasses.dataclass(frozen=True)
class Lines:
    """Regression of two numbers by absolute error; NaN is unknown."""

    output_size: int = 2

    metrics: ClassVar = {
        name: Metric(name=name, title=name, format="number", higher_is_better=False)
        for name in ("loss", "far")
    }
    main_metric = "far"
    logged = ("loss", "far")
    validated = ()
    selectable = logged
    decides = False
    target = A_CLASS
    target_name = "true_value"
    stored_answers = ("value",)
    required_data = ()
    legend: ClassVar = {}

    @classmethod
    def from_config(cls, config):
        return cls()

    @classmethod
    def fits(cls, info):
        return True

    @classmethod
    def from_source(cls, config, info, targets):
        return cls(output_size=1)

    @classmethod
    def from_run(cls, config, data):
        return cls(output_size=1)

    @classmethod
    def from_study(cls, record):
        return cls(output_size=1)

    def data_record(self, info):
        return {}

    def fit_decision(self, answers, target, weight):
        return {}

    def with_decision(self, decision):
        return self

    def loss(self, outputs, target):
        target = jnp.reshape(target, outputs.shape).astype(outputs.dtype)
        known = ~jnp.isnan(target)
        error = jnp.where(known, jnp.abs(outputs - jnp.where(known, target, 0)), 0)
        return error.sum(axis=1), known.sum(axis=1).astype(jnp.float32)

    def sums(self, outputs, target):
        loss, count = self.loss(outputs, target)
        return {"loss": (loss, count), "far": ((loss > 1).astype(jnp.float32), jnp.ones_like(loss))}

    def answer(self, outputs):
        return {"value": outputs}

    def summary(self, answers):
        return f"mean {answers['value'].mean():.2f}"

    def scorer(self, answers, target, weight=None):
        error = np.abs(answers["value"] - target.reshape(len(target), -1)).sum(axis=1)

        def score(times):
            averages = (times @ error / times.sum(), times @ (error > 1) / times.sum())
            return dict(zip(self.logged, map(float, averages), strict=True))

        return score

    def group(self, answers, target, groups):
        return dict(answers), target

    def score(self, answers, target, *, split, step, groups=None, **context):
        estimates = {
            name: {"value": value, "low": None, "high": None}
            for name, value in self.scorer(answers, target)(np.ones(len(target))).items()
        }
        rest = {"num_samples": len(target), "resampled": "sample", "group": None}
        return {"split": split, "step": step, "metrics": estimates, **rest}

    def random_target(self, rng, rows):
        return rng.normal(size=(rows, 2)).astype(np.float32)

    def report(self, scored):
        return []


@pytest.fixture
def config(tiny, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "lines", Lines)
    config = tiny.config(best_metric="far", label_smoothing=0.0)
    model = dataclasses.replace(config.model, num_classes=2)
    return dataclasses.replace(config, task=TaskConfig(name="lines"), model=model)


def test_it_trains_validates_and_logs(config, tiny, devices, tmp_path):
    task = tasks.from_config(config)
    assert isinstance(task, Task)
    mesh = make_mesh(config.train, devices[:2])
    trainer = Trainer.of(config, task, 4, mesh)
    state, abstract = trainer.create_state()
    batch = {**tiny.batch(real=6), "target": task.random_target(np.random.default_rng(0), 8)}
    batch["target"][2, 0] = np.nan
    collected = collect(trainer.compile_eval_step(), state.params, [batch], mesh)
    error = np.abs(collected.answers["value"] - batch["target"][:6])
    np.testing.assert_array_equal(collected.target, batch["target"][:6])
    means = collected.means()
    assert means["loss"] == pytest.approx(np.nansum(error) / 11, rel=1e-6)
    assert means["far"] == (np.nansum(error, axis=1) > 1).mean()
    before = jax.device_get(state.params)
    with jax.transfer_guard("disallow"):
        state, metrics = trainer.compile_train_step(abstract)(state, put_batch(batch, mesh))
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
    assert max(jax.tree.leaves(changed)) > 0
    with Recorder(MetricLog(tmp_path, 0), task.logged, 4) as recorder:
        recorder.add(1, metrics)
        assert set(recorder.flush(lambda step: "")) == {"loss", "far"}
        recorder.validated(1, means, lambda step: "")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(float(metrics["loss"][0]) / 11)
    assert {"gradient_norm", "learning_rate", "samples_per_second"} <= lines[0].keys()
    assert lines[1] == {"kind": "valid", "step": 1, "epoch": 0.25, **means}


def test_the_best_metric_is_one_that_the_task_logs(config):
    task = tasks.from_config(config)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, best_metric="top1")
    )
    with pytest.raises(ConfigError, match=r"train\.best_metric: given 'top1', .*loss, far"):
        Trainer.of(config, task, 1)


def test_an_unknown_task_is_told_with_those_there_are(config):
    config = dataclasses.replace(config, task=TaskConfig(name="linse"))
    with pytest.raises(ConfigError, match=r"task\.name: given 'linse', expected .*classification"):
        tasks.from_config(config)


def test_it_goes_through_all_commands(monkeypatch, tmp_path, one_device):
    """Trains, evaluates, predicts and sweeps on class numbers as values."""
    monkeypatch.setitem(tasks.TASKS, "lines", Lines)
    config = Config(
        task=TaskConfig(name="lines"),
        modalities=(ModalitySpec(name="m0", length=6, feature_dim=2, k=2),),
        model=ModelConfig(embed_dim=8, num_heads=2, num_pre_layers=0, num_post_layers=1),
        data=DataConfig(
            source="synthetic",
            options=SyntheticOptions(
                lengths=(6,), feature_dims=(2,), num_train=16, num_valid=8, num_test=8
            ),
            data_dir=str(tmp_path / "data"),
        ),
        train=TrainConfig(
            duration=Duration(2.0, "steps"),
            eval_every=Duration(2.0, "steps"),
            batch_size=8,
            best_metric="far",
        ),
    )
    workdir = tmp_path / "run-0"
    assert session.train(config, workdir).best is not None
    evaluation = session.evaluate(workdir)
    assert evaluation.predictions["value"].shape == (8, 1)
    predictor = load(workdir)
    records = list(evaluation.session.source.split("test"))
    inputs, mask = (np.stack([r[part]["m0"] for r in records]) for part in ("inputs", "mask"))
    prediction = predictor.predict({"m0": inputs, "mask/m0": mask})
    expected = evaluation.predictions["value"]
    np.testing.assert_allclose(prediction.answers["value"], expected, atol=1e-5)
    assert {"id", "value"} <= prediction.entries().keys()
    study = Study(
        name="toy",
        title="Toy",
        protocol="",
        base=config,
        settings=(Setting(name="a", overrides={}),),
        folds=(Setting(name="all", overrides={}),),
        seeds=(0, 1),
    )
    results = Results(tmp_path / "study", study)
    for seeds in ((0,), (0, 1)):  # the second time beside the stored answers
        part = dataclasses.replace(study, seeds=seeds)
        trained = train_setting(part, study.settings[0], study.folds)
        results.add(study.settings[0], trained, lambda config: {})
    folder = read_study_folder(tmp_path / "study")
    assert folder.metric == "far"
    (stored,) = folder.predictions("a").values()
    assert stored["value"].shape == (2, 8, 1)
    np.testing.assert_array_equal(stored["true_value"], evaluation.predictions["true_value"])
    assert write_report(read_document([workdir]), workdir).is_file()
