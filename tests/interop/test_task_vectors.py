"""Losses and metrics of the tasks against values that other libraries gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from sft_jax.interop.vectors import recorded, task_vectors
from sft_jax.types import DataError

VECTORS = Path(__file__).parents[1] / "task_vectors"


@pytest.mark.parametrize(("name", "count"), [("losses_a", 36), ("task_metrics_a", 45)])
def test_every_recorded_quantity_agrees(name, count):
    found = list(recorded.differences(VECTORS / f"{name}.npz"))
    assert len(found) == count
    for difference in found:
        assert difference.tolerance == 1e-6
        assert difference.agrees, difference


def recording(n, c, seed=0, unknown=0.3):
    """Scores of some size with unknown entries, and what scikit-learn makes of each label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)).astype(np.float32)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    target = (rng.random((n, c)) < 0.4).astype(np.float32)
    target[rng.random((n, c)) < unknown] = np.nan
    target[0] = np.nan
    known = ~np.isnan(target)
    per_label = {"average_precision_per_class": [], "roc_auc_per_class": [], "f1_per_class": []}
    for label in range(c):
        truth, score = target[known[:, label], label], scores[known[:, label], label]
        both = len(np.unique(truth)) == 2
        metrics = sklearn.metrics
        per_label["roc_auc_per_class"].append(metrics.roc_auc_score(truth, score) if both else None)
        some = truth.any()
        precision = metrics.average_precision_score(truth, score) if some else None
        per_label["average_precision_per_class"].append(precision)
        per_label["f1_per_class"].append(
            metrics.f1_score(truth, score >= 0.5, zero_division=0.0) if len(truth) else 0.0
        )
    expected = {"threshold": 0.5, "multilabel": per_label}
    return {
        "meta": np.array(json.dumps({"kind": "task_metrics"})),
        "expected": np.array(json.dumps(expected)),
        "multilabel/logits": logits,
        "multilabel/scores": scores,
        "multilabel/target": target,
    }


@pytest.mark.parametrize(("n", "c"), [(40, 3), (200, 11), (5, 4), (2, 1)])
def test_other_sizes_with_unknown_entries(n, c):
    compared = dict(task_vectors.compare(recording(n, c)))
    assert len(compared) == 3
    assert max(compared.values()) < 1e-9


def test_a_wrong_value_and_an_undefined_one_do_not_agree():
    arrays = recording(40, 3)
    expected = json.loads(str(arrays["expected"]))
    expected["multilabel"]["f1_per_class"][1] += 1e-5
    expected["multilabel"]["roc_auc_per_class"][0] = None
    compared = dict(task_vectors.compare({**arrays, "expected": np.array(json.dumps(expected))}))
    assert compared["multilabel/f1_per_class"] > 1e-6
    assert np.isnan(compared["multilabel/roc_auc_per_class"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multilabel/scores": None}, "multilabel/scores"),
        ({"expected": np.array('{"multilabel": {"nothing": 1}, "threshold": 0.5}')}, "nothing"),
        ({"expected": np.array("[")}, "Expecting value"),
        ({"multilabel/target": np.full((40, 3), 2.0)}, "other than 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_named(change, message):
    arrays = {name: x for name, x in {**recording(40, 3), **change}.items() if x is not None}
    with pytest.raises(DataError, match=message):
        list(task_vectors.compare(arrays))
