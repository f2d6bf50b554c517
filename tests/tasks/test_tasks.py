"""What holds for every task: unknown targets, weights, order of outputs, answers, constructors."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax import tasks
from sft_jax.config.run import Config
from sft_jax.config.task import (
    ClassificationOptions,
    MultilabelOptions,
    RegressionOptions,
    TaskConfig,
)
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.regression import STATISTICS, Regression
from sft_jax.training.step import shard_gradients
from sft_jax.types import ConfigError

NAMES = ("a", "b", "c")
UNIT = (0.0, 1.0, 0.0, 1.0)
MULTILABEL = Multilabel(
    label_names=NAMES,
    positives=(2.0, 6.0, 0.0),
    negatives=(6.0, 2.0, 8.0),
    options=MultilabelOptions(pos_weight="balanced", focal_gamma=1.5, focal_alpha=0.3),
)
REGRESSION = Regression(
    value_names=NAMES,
    statistics=((3.0, 2.0, 2.5, 1.5), UNIT, (7.0, 0.0, 7.0, 0.0)),
    options=RegressionOptions(loss="huber", huber_delta=0.5),
)
CLASSIFICATION = Classification(
    class_names=NAMES,
    train_counts=(3, 4, 5),
    class_weights=(0.5, 2.0, 1.0),
    focal_gamma=1.0,
    label_smoothing=0.1,
)
ALL = {"classification": CLASSIFICATION, "multilabel": MULTILABEL, "regression": REGRESSION}


def targets_of(task, rng, rows, unknown=0.3):
    if task is CLASSIFICATION:
        return rng.integers(0, 3, rows).astype(np.int32)
    target = task.random_target(rng, rows)
    target[rng.random(target.shape) < unknown] = np.nan
    return target


def mean_loss(task, outputs, target, weight):
    loss, count = task.loss(jnp.asarray(outputs), jnp.asarray(target))
    return float((weight * loss).sum() / (weight * count).sum())


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 50))
@settings(max_examples=10)
def test_a_weight_of_two_is_the_sample_twice(name, seed):
    task, rng = ALL[name], np.random.default_rng(seed)
    target, outputs = targets_of(task, rng, 6), rng.normal(size=(6, 3)).astype(np.float32)
    weight = np.array([1, 2, 1, 0, 3, 1])
    copies = np.repeat(np.arange(6), weight)
    found = mean_loss(task, outputs, target, weight)
    assert found == pytest.approx(mean_loss(task, outputs[copies], target[copies], 1), rel=1e-5)
    answers = jax.device_get(task.answer(jnp.asarray(outputs)))
    repeated = {key: values[copies] for key, values in answers.items()}
    scores = task.scorer(answers, target, weight)(np.ones(6, int))
    again = task.scorer(repeated, target[copies])(np.ones(len(copies), int))
    assert scores == pytest.approx(again, rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ALL)
def test_weights_of_a_split_count_in_its_scores(name):
    task, rng = ALL[name], np.random.default_rng(3)
    target, outputs = targets_of(task, rng, 12), rng.normal(size=(12, 3)).astype(np.float32)
    answers = jax.device_get(task.answer(jnp.asarray(outputs)))
    weight = rng.integers(1, 4, 12) / 2
    copies = np.repeat(np.arange(12), (2 * weight).astype(int))
    more = {"split": "test", "step": 1, "replicates": 20}
    found = task.score(answers, target, weight=weight, **more)
    repeated = {key: values[copies] for key, values in answers.items()}
    expected = task.score(repeated, target[copies], **more)
    assert (found["num_samples"], expected["num_samples"]) == (12, len(copies))
    for metric, estimate in expected["metrics"].items():
        value = found["metrics"][metric]["value"]
        assert value == pytest.approx(estimate["value"], rel=1e-6), metric
    key = "majority" if task is CLASSIFICATION else "baseline"
    left, right = (of.get(key) for of in (found, expected))
    if task is not CLASSIFICATION:
        left, right = left["metrics"], right["metrics"]
    assert left == {
        k: v if isinstance(v, str) or v is None else pytest.approx(v, rel=1e-6)
        for k, v in right.items()
    }


@pytest.mark.parametrize("task", [MULTILABEL, REGRESSION], ids=["multilabel", "regression"])
def test_unknown_targets_change_nothing(task, rng):
    target, outputs = targets_of(task, rng, 9), rng.normal(size=(9, 3)).astype(np.float32)
    target[4] = np.nan

    def loss(outputs):
        total, count = task.loss(outputs, jnp.asarray(target))
        return total.sum() / count.sum()

    value, grad = jax.value_and_grad(loss)(jnp.asarray(outputs))
    unknown = np.isnan(target)
    wild = np.where(unknown, 1e4, outputs).astype(np.float32)
    assert not grad[unknown].any()
    assert grad[~unknown].all()
    assert loss(jnp.asarray(wild)) == value
    sums, changed = (task.sums(jnp.asarray(x), jnp.asarray(target)) for x in (outputs, wild))
    jax.tree.map(np.testing.assert_array_equal, sums, changed)
    scores, other = (
        task.scorer(jax.device_get(task.answer(jnp.asarray(x))), target)(np.ones(9))
        for x in (outputs, wild)
    )
    assert scores == pytest.approx(other, nan_ok=True)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_outputs_is_that_of_the_scores(name, rng):
    task, order = ALL[name], np.array([2, 0, 1])
    target, outputs = targets_of(task, rng, 40), rng.normal(size=(40, 3)).astype(np.float32)
    if task is CLASSIFICATION:
        other = dataclasses.replace(
            task,
            class_names=tuple(np.array(NAMES)[order]),
            train_counts=tuple(np.array(task.train_counts)[order].tolist()),
            class_weights=tuple(np.array(task.class_weights)[order].tolist()),
        )
        permuted = np.argsort(order)[target].astype(np.int32)
    else:
        permuted = target[:, order]
        columns = ["positives", "negatives"] if task is MULTILABEL else ["statistics"]
        names = "label_names" if task is MULTILABEL else "value_names"
        changes = {key: tuple(getattr(task, key)[i] for i in order) for key in (*columns, names)}
        other = dataclasses.replace(task, **changes)
    more = {"split": "test", "step": 1, "replicates": 5}
    found, expected = (
        of.score(jax.device_get(of.answer(jnp.asarray(x))), y, **more)
        for of, x, y in ((task, outputs, target), (other, outputs[:, order], permuted))
    )
    for metric, estimate in found["metrics"].items():
        assert estimate["value"] == pytest.approx(expected["metrics"][metric]["value"]), metric
    rows = "per_class" if task is CLASSIFICATION else "per_output"
    for i, row in enumerate(expected[rows]):
        assert row == pytest.approx(found[rows][order[i]], nan_ok=True)
    losses = [
        mean_loss(*of, 1) for of in ((task, outputs, target), (other, outputs[:, order], permuted))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_the_gradient_of_a_step_is_that_of_the_weighted_mean(tiny, name, accumulate, rng):
    task = ALL[name]
    config = tiny.step_config(
        tiny.config(accumulate=accumulate), task=task, apply=tiny.linear_apply
    )
    config = dataclasses.replace(config, augmentation=type(config.augmentation)())
    batch = {**tiny.batch(real=6), "target": targets_of(task, rng, 8)}
    batch["weight"] = (batch["weight"] * rng.integers(0, 4, 8) / 2).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, batch)
    params = tiny.linear_state(config.optimizer).params
    found, metrics = shard_gradients(params, jnp.int32(0), batch, config=config)

    def mean(params):
        outputs = tiny.linear_apply(params, batch["inputs"], batch["mask"], None).logits
        loss, count = task.loss(outputs, jnp.asarray(batch["target"]))
        return (batch["weight"] * loss).sum() / (batch["weight"] * count).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        found,
        jax.grad(mean)(params),
    )
    assert metrics["samples"][0] == 6


def test_numbers_are_answered_in_their_own_units():
    task = dataclasses.replace(REGRESSION, options=RegressionOptions(loss="l1"))
    answers = task.answer(np.array([[2.0, 1.0, 0.5]]))
    # Median 2.5 and mean deviation 1.5; a constant number has width 1.
    np.testing.assert_allclose(answers["value"], [[5.5, 1.0, 7.5]])
    mse = dataclasses.replace(REGRESSION, options=RegressionOptions(loss="mse"))
    np.testing.assert_allclose(mse.answer(np.array([[2.0, 1.0, 0.5]]))["value"], [[7.0, 1, 7.5]])
    loss, count = mse.loss(jnp.array([[2.0, 1.0, 0.5]]), jnp.array([[5.0, np.nan, 7.0]]))
    assert loss[0] == pytest.approx((2 - 1) ** 2 + 0.5**2)
    assert count[0] == 2


def test_statistics_are_those_of_the_known_numbers_by_their_weights():
    info = types.SimpleNamespace(value_names=("x",), class_names=(), class_values=())
    values = np.array([[1.0], [2.0], [np.nan], [10.0]])
    config = Config(task=TaskConfig(name="regression"))
    task = tasks.from_source(config, info, lambda target: (values, np.array([1.0, 2.0, 9.0, 1.0])))
    every = np.array([1.0, 2.0, 2.0, 10.0])
    expected = (every.mean(), every.std(), 2.0, np.abs(every - 2).mean())
    np.testing.assert_allclose(task.statistics[0], expected)
    record = task.data_record(info)
    assert tuple(record["value_statistics"]) == STATISTICS
    assert tasks.from_run(config, record) == task


def test_sentiment_is_also_answered_as_a_rounded_class():
    levels = tuple(float(x) for x in range(-3, 4))
    task = Regression(
        value_names=("sentiment",),
        statistics=(UNIT,),
        class_names=tuple(map(str, levels)),
        class_values=levels,
    )
    outputs = np.array([[-9.0], [-0.5], [0.4], [1.5], [2.5], [7.0]])
    assert task.answer(outputs)["predicted"].tolist() == [0, 3, 3, 5, 5, 6]
    on_device = task.answer(jnp.asarray(outputs, jnp.float32))["predicted"]
    assert on_device.tolist() == [0, 3, 3, 5, 5, 6]
    truth = np.array([[-3.0], [0.0], [0.0], [2.0], [2.6], [3.0]])
    found = task.score(task.answer(outputs), truth, split="test", step=1, replicates=5)
    assert found["metrics"]["acc7"]["value"] == pytest.approx(5 / 6)


def test_intervals_cover_what_they_state(rng):
    task = Regression(value_names=("x",), statistics=(UNIT,), options=RegressionOptions(level=0.8))
    noise = rng.normal(size=(2, 4000, 1))
    value = np.zeros((4000, 1))
    decision = task.fit_decision({"value": value}, noise[0], np.ones(4000))
    fitted = task.with_decision(decision)
    assert fitted.widths[0] == pytest.approx(1.2816, abs=0.06)
    found = fitted.score(fitted.answer(value), noise[1], split="test", step=1, replicates=5)
    assert found["metrics"]["interval_coverage"]["value"] == pytest.approx(0.8, abs=0.03)
    few = task.fit_decision({"value": value[:3]}, noise[0, :3], np.ones(3))
    assert few == {"widths": [None]}
    assert "low" not in task.with_decision(few).answer(value)


def test_balanced_weights_by_hand():
    np.testing.assert_allclose(MULTILABEL.pos_weight, [3.0, 1 / 3, 100.0], rtol=1e-6)
    info = types.SimpleNamespace(
        class_names=NAMES, class_counts={"train": (1, 3, 0)}, class_values=(), has_weight=False
    )
    options = ClassificationOptions(class_weights="balanced")
    config = Config(task=TaskConfig(name="classification", options=options))
    task = tasks.from_source(config, info, lambda target: None)
    np.testing.assert_allclose(task.class_weights, [4 / 3, 4 / 9, 1.0])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: dataclasses.replace(CLASSIFICATION, class_weights=(1.0,)), "1 numbers for 3 cl"),
        (
            lambda: dataclasses.replace(
                MULTILABEL, options=MultilabelOptions(pos_weight=(1.0, 2.0))
            ),
            "2 numbers for 3 labels",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(task, message):
    with pytest.raises(ConfigError, match=message):
        task()


def info_of(**names):
    given = {"class_names": (), "label_names": (), "value_names": (), **names}
    return types.SimpleNamespace(**given)


def test_the_data_choose_the_task_and_a_task_without_targets_is_refused():
    both = info_of(class_names=NAMES, value_names=("x",))
    assert tasks.resolve(Config(), both).name == "classification"
    assert tasks.resolve(Config(), info_of(label_names=NAMES)).name == "multilabel"
    assert tasks.resolve(Config(), info_of(value_names=NAMES)).name == "regression"
    regression = Config(task=TaskConfig(name="regression"))
    assert tasks.resolve(regression, both) == regression.task
    with pytest.raises(ConfigError, match="'multilabel' for data that have targets for classif"):
        tasks.resolve(Config(task=TaskConfig(name="multilabel")), both)
