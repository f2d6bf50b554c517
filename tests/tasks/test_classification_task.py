import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax import tasks
from sft_jax.config.run import Config
from sft_jax.models.mixup import Mixup
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.training.step import loss_and_sums, mixed_loss, shard_gradients

TASK = Classification(class_names=("a", "b", "c"), train_counts=(1, 3, 2), label_smoothing=0.3)
LOGITS = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]], np.float32))
LABEL = np.array([0, 1, 1])


def test_losses_and_sums_by_hand():
    loss, count = TASK.loss(jnp.asarray(LOGITS), jnp.asarray(LABEL))
    expected = [
        -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)),
        -(0.8 * np.log(0.1) + 0.1 * np.log(0.1) + 0.1 * np.log(0.8)),
        -(0.1 * np.log(0.2) + 0.8 * np.log(0.7) + 0.1 * np.log(0.1)),
    ]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(count, [1, 1, 1])
    sums = TASK.sums(jnp.asarray(LOGITS), jnp.asarray(LABEL))
    assert tuple(sums) == TASK.logged
    np.testing.assert_allclose(sums["loss"][0], -np.log([0.5, 0.1, 0.7]), rtol=1e-6)
    np.testing.assert_array_equal(sums["top1"], [[1, 0, 1], [1, 1, 1]])


def test_answers_on_host_and_device_agree_and_the_host_is_exact():
    device = TASK.answer(jnp.asarray(LOGITS))
    host = TASK.answer(LOGITS)
    assert host["probabilities"].dtype == np.float64
    assert host["predicted"].tolist() == device["predicted"].tolist() == [0, 2, 1]
    np.testing.assert_allclose(device["probabilities"], host["probabilities"], rtol=1e-6)


def test_values_count_samples_as_often_as_they_are_told():
    answers = TASK.answer(LOGITS)
    copies = {k: v[[0, 1, 1]] for k, v in answers.items()}
    again = TASK.scorer(copies, LABEL[[0, 1, 1]])(np.ones(3, int))
    found = TASK.scorer(answers, LABEL)(np.array([1, 2, 0]))
    assert found == pytest.approx(again)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx(-np.log([0.5, 0.1, 0.1]).mean(), rel=1e-6)
    # Losses that the compiled evaluation found stand before those of the probabilities.
    losses = np.array([1.0, 2.0, 9.0], np.float32)
    assert TASK.scorer({**answers, "loss": losses}, LABEL)(np.ones(3, int))["loss"] == 4.0


def test_groups_are_judged_by_mean_probabilities():
    answers, target = TASK.group(TASK.answer(LOGITS), LABEL, np.array(["x", "y", "y"]))
    np.testing.assert_allclose(answers["probabilities"][1], [0.15, 0.4, 0.45], rtol=1e-6)
    assert (answers["predicted"].tolist(), target.tolist()) == ([0, 2], [0, 1])


def test_blended_samples_share_loss_and_count():
    """Against a task whose counts differ, so that a lost count shows."""

    class Weighted(Classification):
        def loss(self, outputs, target):
            return (outputs[:, 0] - target) ** 2, 1.0 + target

    task = Weighted(class_names=("a",))
    outputs, target = np.array([[1.0], [2.0], [3.0]]), np.array([0.0, 1.0, 2.0])
    share, partner = np.array([1.0, 0.25, 0.5], np.float32), np.array([0, 2, 0])
    mixup = Mixup(depth=jnp.int32(0), lam=jnp.asarray(share)[None], partner=jnp.asarray(partner))
    outputs, target = jnp.asarray(outputs, jnp.float32), jnp.asarray(target, jnp.float32)
    loss, count = mixed_loss(task, outputs, target, mixup)
    for i in range(3):
        pair = [(target[i], share[i]), (target[partner[i]], 1 - share[i])]
        assert loss[i] == pytest.approx(sum(w * (outputs[i, 0] - y) ** 2 for y, w in pair))
        assert count[i] == pytest.approx(sum(w * (1 + y) for y, w in pair))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_of_a_batch_is_divided_by_what_its_samples_count_for(tiny, accumulate):
    @dataclasses.dataclass(frozen=True)
    class Reduced(Classification):
        """Samples of class 0 count for a tenth."""

        def loss(self, outputs, target):
            losses, _ = super().loss(outputs, target)
            weight = jnp.where(target == 0, 0.1, 1.0)
            return weight * losses, weight

    task = Reduced(class_names=("a", "b", "c"))
    config = tiny.step_config(
        tiny.config(accumulate=accumulate), task=task, apply=tiny.linear_apply
    )
    config = dataclasses.replace(config, augmentation=type(config.augmentation)())
    batch = jax.tree.map(jnp.asarray, tiny.batch(real=5))
    # All of class 0: the divisor is below 1, and must not be taken for a batch without samples.
    batch = {**batch, "target": jnp.zeros_like(batch["target"])}
    params = tiny.linear_state(config.optimizer).params
    found, metrics = shard_gradients(params, jnp.int32(0), batch, config=config)

    def mean(params):
        logits = tiny.linear_apply(params, batch["inputs"], batch["mask"], None).logits
        losses = -jax.nn.log_softmax(logits)[:5, 0]
        return losses.mean()

    expected = jax.grad(mean)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)
    assert metrics["samples"][0] == 5
    assert loss_and_sums(params, batch, jnp.arange(8), jnp.int32(0), config=config)[1][
        "count"
    ] == pytest.approx(0.5)


def test_constructors_agree_on_classes():
    class Info:
        class_names, class_counts, class_values = ("x", "y"), {"train": (4, 2)}, (-1.0, 1.0)
        has_weight = False

    config = Config()
    source = tasks.from_source(config, Info, lambda target: None)
    run = tasks.from_run(config, {"class_names": ["x", "y"], "counts": {"train": [4, 2]}})
    assert dataclasses.replace(source, class_values=()) == run
    assert run.output_size == 2


def test_every_logged_metric_has_a_direction():
    assert not METRICS["loss"].higher_is_better
    assert METRICS["top1"].higher_is_better
    assert {*TASK.logged, TASK.main_metric} <= METRICS.keys()
    assert {name for name, m in METRICS.items() if m.format == "number"} == {
        "loss",
        "d_prime",
        "mae",
        "corr",
    }
