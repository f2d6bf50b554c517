import json
from pathlib import Path

import numpy as np
import pytest

from sft_jax.interop.vectors import metric_vectors
from sft_jax.types import DataError

VECTORS = Path(__file__).parent.parent / "reference_vectors" / "metrics.npz"


@pytest.fixture(scope="module")
def arrays():
    with np.load(VECTORS, allow_pickle=False) as file:
        return dict(file)


def test_every_recorded_value_is_reproduced(arrays):
    compared = metric_vectors.compare(arrays)
    recorded = {
        f"{entry}/{name}": value
        for entry, text in arrays.items()
        if "_expected" in entry
        for name, value in json.loads(str(text)).items()
    }
    assert len(recorded) == 24
    assert compared.keys() == recorded.keys()
    for name, value in recorded.items():
        ours, theirs = compared[name]
        assert theirs == pytest.approx(value / (100 if "/top" in name else 1), rel=1e-15), name
        assert ours == pytest.approx(theirs, abs=1e-6, rel=0), name


@pytest.mark.parametrize(
    ("entry", "change", "metrics"),
    [
        ("senti_labels", lambda y: np.where(np.arange(400) == 7, (y + 3) % 7, y), {"mAP", "acc2"}),
        ("vgg_logits", lambda z: z - z.max(axis=1, keepdims=True), {"mAP", "mAUC", "dprime"}),
        ("regression_true", lambda t: np.where(np.arange(500) == 0, 0.25, t), {"mae", "corr"}),
    ],
)
def test_other_inputs_are_seen(arrays, entry, change, metrics):
    compared = metric_vectors.compare({**arrays, entry: change(arrays[entry])})
    prefix = entry.partition("_")[0]
    far = {name for name, (ours, recorded) in compared.items() if abs(ours - recorded) > 1e-6}
    assert metrics <= {name.partition("/")[2] for name in far}
    assert all(name.startswith(prefix) for name in far)


def test_other_sizes_and_names():
    # Three classes of sentiment: neutral is the middle one; no top3 is wanted, none is computed.
    arrays = {
        "small_logits": np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 3.0, 2.0]], np.float32),
        "small_labels": np.array([0, 2, 0]),
        "small_expected": np.array(json.dumps({"acc2": 2 / 3, "top1": 66.0, "mAUC": 1.0})),
    }
    compared = metric_vectors.compare(arrays)
    assert compared == {
        "small_expected/acc2": (pytest.approx(2 / 3), 2 / 3),
        "small_expected/top1": (pytest.approx(2 / 3), 0.66),
        "small_expected/mAUC": (pytest.approx((1 + 0.75) / 2), 1.0),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"senti_labels": None}, "senti_expected: found .*expected senti_logits and senti_labels"),
        ({"senti_expected": np.array("{")}, "senti_expected: found '{', expected a JSON object"),
        ({"senti_expected": np.array('{"top9": 1}')}, r"found metrics \['top9'\], expected some"),
        ({"vgg_expected": np.array('{"acc2": 1}')}, r"found metrics \['acc2'\], expected some"),
        ({"vgg_labels": np.zeros(600)}, r"vgg_labels float64 \(600,\), expected .*whole numbers"),
        ({"vgg_expected": None}, r"found \['vgg_labels', 'vgg_logits'\] without expected"),
        ({"x_expected_half": np.array("{}")}, "x_expected_half: found.*expected x_pred and x_true"),
    ],
)
def test_a_file_of_another_form_is_named(arrays, change, message):
    changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(DataError, match=message):
        metric_vectors.compare(changed)


def test_an_empty_file_is_named():
    with pytest.raises(DataError, match=r"metrics file: found \[\].*expected <prefix>_logits"):
        metric_vectors.compare({})
