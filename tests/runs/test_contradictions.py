"""Folders of others: files that disagree, or hold what cannot be drawn, are named."""

import json

import numpy as np
import pytest

from sft_jax.runs import example_file, run_folder, study_folder
from sft_jax.types import CheckpointError, ConfigError, DataError

REFUSED = (CheckpointError, ConfigError, DataError)


def change(path, place, value):
    content = json.loads(
        path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
    )
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("config.json", ["model"], 3, "model: given 3"),
        ("config.json", ["modalities", "../x"], {"length": 1}, r"modalities.\.\./x: given"),
        ("data.json", ["class_names"], "abc", "data.json: class_names: found 'abc', expected a li"),
        ("data.json", ["class_names"], ["a"], r"counts.train: found 4 classes, expected 1"),
        ("data.json", ["counts", "test"], [1, -1, 2, 3], r"counts.test\[1\]: found -1"),
        ("data.json", ["num_parameters"], 1e9, "num_parameters: found 1000000000.0"),
        ("evaluation_test.json", ["split"], "../../x", "split: found '../../x', expected a part"),
        ("evaluation_test.json", ["split"], "valid", "found split 'valid', expected the one that"),
        ("evaluation_test.json", ["metrics", "loss"], None, "metrics.loss: found None"),
        ("metrics.jsonl", ["loss"], "x", "line 1: loss: found 'x', expected a finite number"),
        ("evaluation_test.json", ["confusion"], [[1]], r"confusion: found 1 rows of lengths \[1\]"),
        ("evaluation_test.json", ["confusion", 0, 0], 0.5, r"confusion\[0\]\[0\]: found 0.5"),
        ("evaluation_test.json", ["majority", "mAUC"], "x", "majority.mAUC: found 'x', expected a"),
        ("evaluation_test.json", ["group"], [], r"group: found \[\], expected an object"),
    ],
)
def test_a_run_that_contradicts_itself_is_named(workdir, name, place, value, message):
    change(workdir / name, place, value)
    with pytest.raises(REFUSED, match=message):
        run_folder.read_run(workdir)


def predictions(**changes):
    entries = {
        **{"id": np.arange(3), "group": np.array(list("aab")), "label": np.array([0, 1, 3])},
        "probabilities": np.full((3, 4), 0.25, np.float32),
        "kept/m0/indices": np.array([[0, 47, -1]] * 3),
    }
    return {name: array for name, array in (entries | changes).items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"label: found \[.*'probabilities'\], expected an entry label as"),
        ({"label": np.array([0, 1, 4])}, "label: found classes 0 to 4, expected 0 to 3"),
        ({"label": np.zeros(3)}, r"label: found float64 of shape \(3,\), expected 1 axes of int"),
        ({"id": np.arange(2)}, "id: found 2 rows for 3 labels"),
        ({"probabilities": np.full((3, 4), np.nan)}, "3 rows that are no distribution"),
        ({"probabilities": np.ones((3, 4), int)}, "probabilities: found int64"),
        ({"kept/m0/indices": np.full((3, 1), 48)}, "tokens 48 to 48, expected -1 to 47"),
        ({"kept/m0/indices": np.full((3, 1), -2)}, "tokens -2 to -2"),
        ({"group": np.array([{}] * 3, object)}, "Python objects, which could run code"),
    ],
)
def test_predictions_that_are_not_of_this_run_are_named(workdir, changes, message):
    np.savez(workdir / "predictions_test.npz", **predictions())
    assert set(run_folder.read_run(workdir).predictions["test"]) == set(predictions())
    np.savez(workdir / "predictions_test.npz", **predictions(**changes))
    with pytest.raises(DataError, match=rf"predictions_test.npz: .*{message}"):
        assert run_folder.read_run(workdir).predictions


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("signal/m0", np.full((3, 2), np.inf), "values that are not finite"),
        ("kept/m0", np.array([0.5]), r"kept/m0: found float64"),
        ("span/m0", np.zeros((4, 3), int), r"span/m0: found shape \(4, 3\)"),
        ("sampling_rate", np.float64(0), "sampling_rate: found 0.0"),
        ("title", np.int64(3), "title: found int64"),
    ],
)
def test_a_recording_that_cannot_be_drawn_is_named(tmp_path, example, entry, value, message):
    path = example_file.save_example(tmp_path / "example.npz", example)
    entries = dict(np.load(path))
    np.savez(path, **{**entries, entry: value})
    with pytest.raises(DataError, match=rf"example.npz: .*{message}"):
        example_file.load_example(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("study.json", '"toy"', '"../toy"', r"name: found '\.\./toy', expected a part"),
        ("study.json", '"dense", "overrides"', '"sft", "overrides"', "each once"),
        ("study.json", '"seeds": [0, 1]', '"seeds": [1, 1]', "seeds: found .*each once"),
        ("results.csv", "0.5", "inf", "line 2: found value 'inf', expected a number"),
        ("results.csv", "sample,top1", "sample,top2", "found no top1 per sample of setting"),
        ("results.csv", "fold0,0", "fold9,0", "line 2: found fold 'fold9'"),
        ("curves.csv", ",10,", ",x,", "line 2: found step 'x', expected a number"),
        ("curves.csv", ",10,", ",-1,", "line 2: found step '-1'"),
        ("curves.csv", "step", "\udcff", "found no text .*expected UTF-8"),
    ],
)
def test_a_study_that_contradicts_itself_is_named(study, name, old, new, message):
    folder = study(lambda *run: 0.5, settings=("sft", "dense"), predictions=False)
    path = folder / name
    text = path.read_text()
    assert old in text
    replaced = text.replace(old, new) if old == "sample,top1" else text.replace(old, new, 1)
    path.write_bytes(replaced.encode(errors="surrogateescape"))
    with pytest.raises(REFUSED, match=rf"{name}.*{message}"):
        study_folder.read_study_folder(folder)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("seed", np.array([0.0, 1.0]), "expected integers seed"),
        ("label", np.arange(5), r"probabilities \[s, n, 3\]"),
        ("probabilities", np.ones((2, 6, 3), np.float32), "no distribution"),
        ("label", np.full(6, 3), "found classes 3 to 3"),
    ],
)
def test_predictions_of_another_study_are_named(study, entry, value, message):
    folder = study(lambda *run: 0.5)
    path = folder / "predictions" / "sft-fold0.npz"
    np.savez(path, **{**dict(np.load(path)), entry: value})
    with pytest.raises(DataError, match=rf"sft-fold0.npz: .*{message}"):
        study_folder.read_study_folder(folder).predictions("sft")
