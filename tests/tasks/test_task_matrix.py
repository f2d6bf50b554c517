"""Every task with every model, mixup, precision, accumulation, and one or eight devices."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from slow import corners

from sft_jax.config.model import OPTIONS, UnimodalOptions
from sft_jax.config.run import MixupConfig
from sft_jax.config.task import MultilabelOptions, RegressionOptions, TaskConfig
from sft_jax.tasks import from_config
from sft_jax.training.sharding import make_mesh, put_batch
from sft_jax.training.trainer import Trainer

TASKS = {
    "classification": TaskConfig(name="classification"),
    "multilabel": TaskConfig(name="multilabel", options=MultilabelOptions(focal_gamma=1.0)),
    "regression": TaskConfig(name="regression", options=RegressionOptions(loss="huber")),
}
# Mixup is of `sft` alone.
CASES = [
    (task, model, mixup, dtype, accumulate)
    for task, model, mixup, dtype, accumulate in itertools.product(
        TASKS, OPTIONS, ("none", "any"), ("float32", "bfloat16"), (1, 2)
    )
    if mixup == "none" or model == "sft"
]
EVERY_TIME = [
    ("multilabel", "sft", "any", "float32", 2),
    ("regression", "sft", "any", "float32", 1),
    ("regression", "mbt", "none", "bfloat16", 1),
]


def config_of(tiny, task, model, mixup, dtype, accumulate):
    options = {"mode": mixup, "groups": 8} if mixup != "none" else {}
    config = tiny.config(
        mixup=MixupConfig(**options), batch_size=16, accumulate=accumulate, label_smoothing=0.0
    )
    unimodal = UnimodalOptions(modality="m1") if model == "unimodal" else OPTIONS[model]()
    changes = {"name": model, "dtype": dtype, "options": unimodal}
    return dataclasses.replace(
        config, task=TASKS[task], model=dataclasses.replace(config.model, **changes)
    )


@pytest.mark.parametrize(
    "case", corners(CASES, *EVERY_TIME), ids=lambda case: "-".join(map(str, case))
)
def test_one_and_several_devices_take_the_same_step(tiny, devices, case):
    *_, accumulate = case
    config = config_of(tiny, *case)
    task = from_config(config)
    batch = tiny.batch(rows=16, real=13)
    rng = np.random.default_rng(0)
    if case[0] != "classification":
        batch["target"] = task.random_target(rng, 16)
        batch["target"][rng.random(batch["target"].shape) < 0.2] = np.nan
    batch["weight"] *= rng.integers(1, 4, 16)
    outcomes = []
    for count in (1, 8 // accumulate):
        trainer = Trainer.of(config, task, 4, make_mesh(config.train, devices[:count]))
        state, abstract = trainer.create_state()
        step = trainer.compile_train_step(abstract)
        state, metrics = step(state, put_batch(batch, trainer.mesh))
        outcomes.append(jax.device_get((state.params, metrics)))
    (params, metrics), (others, other_metrics) = outcomes
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, metrics)))
    tolerance = 1e-5 if config.model.dtype == "float32" else 2e-2
    for name, (total, count) in metrics.items():
        assert other_metrics[name][0] == pytest.approx(total, rel=tolerance, abs=1e-6), name
        assert other_metrics[name][1] == pytest.approx(count, rel=1e-6), name
    assert metrics["samples"][0] == 13
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(params))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        # Adam blows up the rounding of gradients that are zero but for it, to a step at most.
        off = np.abs(a - b)
        assert np.mean(off > 10 * tolerance * largest) < 0.1
        assert off.max() <= 2.1 * config.optimizer.learning_rate
