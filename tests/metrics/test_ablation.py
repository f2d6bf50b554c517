import json

import numpy as np
import pytest

from sft_jax.metrics.ablation import ablation, without
from sft_jax.tasks.classification import Classification


def outputs(named, label, ids=None, loss=None):
    label = np.asarray(label)
    return {
        "id": np.arange(len(label)) if ids is None else np.asarray(ids),
        "target": label,
        "probabilities": np.eye(3)[named] * 0.9 + 1 / 30,
        "loss": np.zeros(len(label), np.float32) if loss is None else np.float32(loss),
    }


def scorer(rows):
    return Classification(class_names=("a", "b", "c")).scorer(rows, rows["target"])


def test_a_modality_is_masked_and_a_sample_with_nothing_else_becomes_padding(tiny):
    batch = tiny.batch(real=3)
    batch["mask"]["m1"][1] = False  # sample 1 has m0 alone
    batch["id"][:3] = [4, 5, 6]
    (changed,) = without([batch], "m0")
    assert not changed["mask"]["m0"].any()
    assert not changed["inputs"]["m0"].any()
    np.testing.assert_array_equal(changed["inputs"]["m1"], batch["inputs"]["m1"])
    np.testing.assert_array_equal(changed["mask"]["m1"], batch["mask"]["m1"])
    assert changed["id"][:3].tolist() == [4, -1, 6]
    assert changed["weight"][:3].tolist() == [1, 0, 1]
    for name in ("id", "weight", "target"):
        assert changed[name].dtype == batch[name].dtype
    assert batch["mask"]["m0"][:3].any()  # what was given is as it was


def test_scores_and_differences_by_hand():
    label = [0, 1, 2, 0]
    complete = outputs([0, 1, 2, 0], label, loss=[1, 1, 1, 1])
    ablated = {"m0": outputs([0, 1, 0, 1], label, loss=[1, 2, 3, 4])}
    groups = np.array(["a", "a", "b", "b"])
    found = ablation(
        complete, ablated, scorer=scorer, split="test", step=7, groups=groups, replicates=200
    )
    assert (found["split"], found["step"], found["num_samples"]) == ("test", 7, 4)
    assert found["resampled"] == "group"
    of = found["without"]["m0"]
    assert (of["num_samples"], of["left_out"]) == (4, 0)
    assert of["metrics"]["top1"]["value"] == 0.5
    assert of["difference"]["top1"]["value"] == -0.5
    assert of["difference"]["loss"]["value"] == 1.5
    # F1 of the classes: 0.5, 2/3, 0.
    assert of["metrics"]["macro_f1"]["value"] == pytest.approx(7 / 18)
    # Group a loses nothing, b everything: draws reach from the one to the other.
    assert of["difference"]["top1"]["low"] == -1.0
    assert of["difference"]["top1"]["high"] == 0.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_differences_are_to_the_same_samples():
    complete = outputs([0, 1, 2, 2], [0, 1, 2, 0], loss=[1, 1, 1, 9])
    ablated = {"m0": outputs([0, 2], [0, 1], ids=[0, 1])}
    of = ablation(complete, ablated, scorer=scorer, split="test", step=1, replicates=20)["without"][
        "m0"
    ]
    assert (of["num_samples"], of["left_out"]) == (2, 2)
    assert of["metrics"]["top1"]["value"] == 0.5
    assert of["difference"]["top1"]["value"] == -0.5
    assert of["difference"]["loss"]["value"] == -1.0


def test_nothing_left_is_undefined():
    nothing = outputs(np.zeros(0, int), np.zeros(0, int))
    found = ablation(outputs([0], [0]), {"m0": nothing}, scorer=scorer, split="test", step=1)
    of = found["without"]["m0"]
    assert (of["num_samples"], of["left_out"]) == (0, 1)
    assert of["metrics"]["top1"] == {"value": None, "low": None, "high": None}
    assert found["resampled"] == "sample"
