import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import norm

from sft_jax.config.run import TrainConfig
from sft_jax.models.pools import Pooled
from sft_jax.tasks import classification_scores
from sft_jax.tasks.classification import Classification
from sft_jax.training import sharding
from sft_jax.training.evaluation import Collected, collect, compile_eval_step

RECORDS = 19
TASK = Classification(class_names=("a", "b", "c"))


@pytest.fixture
def apply(tiny):
    """Logits from the record's label and id alone, both written into its inputs."""

    def apply(params, inputs, mask, keys):
        assert keys is None
        label, record = inputs["m0"][:, 0, 0], inputs["m0"][:, 0, 1]
        logits = jnp.stack([label, record / 10, -record], axis=1) * params["scale"]
        indices = record.astype(jnp.int32)[:, None] + jnp.arange(2)
        kept = Pooled(
            tokens=jnp.zeros((*indices.shape, 1)),
            mask=indices >= 0,
            indices=indices,
            saliency=-record[:, None] * jnp.ones(2),
        )
        drawn = kept.replace(saliency=None)  # of a pool that selects without looking at it
        pooled = {"m0": kept, "m1": Pooled(tokens=kept.tokens, mask=kept.mask), "m2": drawn}
        return tiny.output(logits, pooled)

    return apply


def make_batches(tiny, order, rows=8):
    labels = np.arange(RECORDS) % 3
    for start in range(0, len(order), rows):
        ids = np.array(order[start : start + rows])
        batch = tiny.batch(real=len(ids))
        batch["id"] = np.full(rows, -1, np.int32)
        batch["id"][: len(ids)] = ids
        batch["target"][: len(ids)] = labels[ids]
        batch["inputs"]["m0"][: len(ids), 0, 0] = labels[ids]
        batch["inputs"]["m0"][: len(ids), 0, 1] = ids
        yield batch


def run(tiny, apply, devices, order):
    mesh = sharding.make_mesh(TrainConfig(batch_size=8), devices)
    eval_step = compile_eval_step(apply, TASK, mesh)
    params = {"scale": jnp.ones(())}
    params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
    return collect(eval_step, params, make_batches(tiny, order), mesh)


def test_every_record_once_in_order(tiny, apply, devices):
    order = np.random.default_rng(0).permutation(RECORDS).tolist()
    outputs = run(tiny, apply, devices[:4], order)
    records = np.arange(RECORDS)
    np.testing.assert_array_equal(outputs.id, records)
    np.testing.assert_array_equal(outputs.target, records % 3)
    logits = np.stack([records % 3, records / 10, -records], axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        outputs.answers["probabilities"], probabilities, rtol=1e-5, atol=1e-9
    )
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[records, records % 3]
    np.testing.assert_allclose(outputs.sums["loss"][0], loss, rtol=1e-5)
    np.testing.assert_array_equal(outputs.kept["m0"]["indices"], records[:, None] + [0, 1])
    np.testing.assert_array_equal(outputs.kept["m0"]["saliency"], -records[:, None] * [1, 1])
    # A pool that chooses no tokens has nothing to report, one that draws them no saliency.
    np.testing.assert_allclose(outputs.outputs, logits, rtol=1e-6)
    assert {name: set(parts) for name, parts in outputs.kept.items()} == {
        "m0": {"indices", "saliency"},
        "m2": {"indices"},
    }


def test_devices_and_order_do_not_matter(tiny, apply, devices):
    order = np.random.default_rng(1).permutation(RECORDS).tolist()
    one = run(tiny, apply, devices[:1], list(range(RECORDS)))
    four = run(tiny, apply, devices[:4], order)
    jax.tree.map(np.testing.assert_array_equal, vars(four), vars(one))


@pytest.fixture
def scored(tiny, devices):
    """Evaluates random records in batches of 8, the last of 3, on the first `count` devices."""
    rng = np.random.default_rng(4)
    features = rng.normal(size=(RECORDS, 3)).astype(np.float32)
    label = rng.integers(0, 3, RECORDS)
    value = (label - 1 + rng.uniform(-0.5, 0.5, RECORDS)).astype(np.float32)

    def apply(params, inputs, mask, keys):
        return tiny.output(inputs["m0"][:, 0, :3] * params["scale"], {})

    def batches():
        for start in range(0, RECORDS, 8):
            rows = np.arange(start, min(start + 8, RECORDS))
            batch = tiny.batch(real=len(rows))
            # What a padding row holds would spoil every metric if it were counted.
            batch["inputs"]["m0"][:, 0, :3] = 1e3
            batch["inputs"]["m0"][: len(rows), 0, :3] = features[rows]
            batch["target"][: len(rows)] = label[rows]
            batch["id"][: len(rows)] = rows
            yield batch

    def evaluate(count):
        mesh = sharding.make_mesh(TrainConfig(batch_size=8), devices[:count])
        params = {"scale": jnp.ones(())}
        params = jax.device_put(params, sharding.parameter_shardings(params, mesh))
        outputs = collect(compile_eval_step(apply, TASK, mesh), params, batches(), mesh)
        return classification_scores.evaluate(
            outputs.answers["probabilities"],
            outputs.target,
            split="test",
            step=1,
            class_names=("negative", "neutral", "positive"),
            train_counts=np.array([3, 5, 4]),
            scores=outputs.outputs,
            class_values=(-1.0, 0.0, 1.0),
            value=value,
            replicates=50,
        )

    return SimpleNamespace(evaluate=evaluate, features=features, label=label, value=value)


def test_every_metric_is_the_same_on_one_and_eight_devices(scored):
    one, eight = scored.evaluate(1), scored.evaluate(8)
    assert json.dumps(one, allow_nan=False) == json.dumps(eight, allow_nan=False)
    assert eight["num_samples"] == RECORDS
    # And they are those of the records, counted without batches.
    logits, label = scored.features.astype(np.float64), scored.label
    own = label[:, None] == np.arange(3)
    found = {name: of["value"] for name, of in eight["metrics"].items()}
    assert found["mAP"] == pytest.approx(sklearn.metrics.average_precision_score(own, logits))
    auc = sklearn.metrics.roc_auc_score(own, logits)
    assert found["mAUC"] == pytest.approx(auc)
    assert found["d_prime"] == pytest.approx(np.sqrt(2) * norm.ppf(auc))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = probabilities[:, 2] - probabilities[:, 0]
    sentiment = {name: of["value"] for name, of in eight["sentiment"].items()}
    assert sentiment["corr"] == pytest.approx(np.corrcoef(expected, scored.value)[0, 1], abs=1e-6)
    assert sentiment["acc2_nonneg"] == np.mean((expected >= 0) == (scored.value >= 0))


def test_placed_parameters_stay_under_the_transfer_guard(tiny, apply, devices):
    mesh = sharding.make_mesh(TrainConfig(batch_size=8), devices[:4])
    eval_step = compile_eval_step(apply, TASK, mesh)
    with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        collect(eval_step, {"scale": np.ones((), np.float32)}, make_batches(tiny, [0, 1]), mesh)


def collected(**sums):
    rows = np.zeros(len(next(iter(sums.values()))[0]))
    weight = np.ones(len(rows), np.float32)
    return Collected(
        id=rows, target=rows, weight=weight, outputs=rows, answers={}, sums=sums, kept={}
    )


def test_means_by_hand():
    """A sum over all samples by what they count for: no mean of means."""
    loss = np.array([1.0, 2.0, 6.0], np.float32), np.ones(3, np.float32)
    error = np.array([3.0, 0.0, 5.0]), np.array([3.0, 0.0, 1.0])
    assert collected(loss=loss, error=error).means() == {"loss": 3.0, "error": 2.0}


def test_the_mean_is_exact_where_float32_is_not():
    loss = np.array([2.0**25, 1.0, 1.0, 1.0], np.float32), np.ones(4, np.float32)
    assert collected(loss=loss).means()["loss"] == (2.0**25 + 3) / 4
