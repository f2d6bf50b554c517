"""A new task is one class and one entry in one table: nothing else has to know of it."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax import tasks
from sft_jax.config.run import TaskConfig
from sft_jax.runs.metric_log import MetricLog
from sft_jax.tasks.base import Metric, Task
from sft_jax.training.evaluation import collect
from sft_jax.training.recorder import Recorder
from sft_jax.training.sharding import make_mesh, put_batch
from sft_jax.training.trainer import Trainer
from sft_jax.types import ConfigError


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
    target_name = "value"

    @classmethod
    def from_config(cls, config):
        return cls()

    def loss(self, outputs, target):
        known = ~jnp.isnan(target)
        error = jnp.where(known, jnp.abs(outputs - jnp.where(known, target, 0)), 0)
        return error.sum(axis=1), known.sum(axis=1).astype(jnp.float32)

    def sums(self, outputs, target):
        loss, count = self.loss(outputs, target)
        return {"loss": (loss, count), "far": ((loss > 1).astype(jnp.float32), jnp.ones_like(loss))}

    def answer(self, outputs):
        return {"value": outputs}

    def values(self, answers, target, times=None):
        return {"loss": 0.0, "far": 0.0}

    def group(self, answers, target, groups):
        return dict(answers), target

    def score(self, answers, target, *, split, step, groups=None, **context):
        return {}

    def random_target(self, rng, rows):
        return rng.normal(size=(rows, 2)).astype(np.float32)


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
