import dataclasses
import json

import numpy as np
import pytest

from sft_jax.runs import example_file, metric_log, run_folder
from sft_jax.types import CheckpointError, DataError


def test_example_round_trip(tmp_path, example):
    loaded = example_file.load_example(example_file.save_example(tmp_path / "example.npz", example))
    for field in dataclasses.fields(example_file.Example):
        old, new = getattr(example, field.name), getattr(loaded, field.name)
        if isinstance(old, dict):
            assert list(new) == ["m0"]
            np.testing.assert_array_equal(new["m0"], old["m0"])
        else:
            assert new == old


def test_example_without_saliency(tmp_path, example):
    bare = dataclasses.replace(example, saliency={})
    assert (
        example_file.load_example(example_file.save_example(tmp_path / "e.npz", bare)).saliency
        == {}
    )


def test_example_with_a_missing_entry_is_named(tmp_path):
    np.savez(tmp_path / "e.npz", **{"signal/m0": np.zeros((3, 1)), "span/m0": np.zeros((3, 2))})
    with pytest.raises(DataError, match=r"expected an entry kept/m0 as well"):
        example_file.load_example(tmp_path / "e.npz")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "sft_jax.train"),
        ("data.json", "sft_jax.train"),
        ("metrics.jsonl", "sft_jax.train"),
        ("evaluation_test.json", "sft_jax.evaluate"),
    ],
)
def test_a_missing_file_names_the_command_that_makes_it(workdir, name, command):
    (workdir / name).unlink()
    named = name.replace("_test", "_<split>")
    with pytest.raises(CheckpointError, match=rf"found no {named}.*python -m {command}"):
        run_folder.read_run(workdir)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: found no JSON"),
        ("data.json", '{"counts": {}}', r"data.json: found \['counts'\], expected also \['modalit"),
        ("evaluation_test.json", "{}", r"expected also \['split'"),
        ("metrics.jsonl", "", "metrics.jsonl: found no record"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\n{"kin', "line 2: found no JSON"),
        ("metrics.jsonl", "3\n", "line 1: found 3, expected an object"),
    ],
)
def test_broken_files_are_named(workdir, name, content, message):
    (workdir / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        run_folder.read_run(workdir)


def test_the_last_record_of_a_step_holds(tmp_path):
    lines = [("train", 20, 1.0), ("train", 10, 2.0), ("valid", 20, 3.0), ("train", 20, 4.0)]
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": kind, "step": step, "loss": loss} for kind, step, loss in lines]
    path.write_text("\n".join(map(json.dumps, records)))
    found = [(r["kind"], r["step"], r["loss"]) for r in metric_log.read_metrics(path)]
    assert found == [("train", 10, 2.0), ("train", 20, 4.0), ("valid", 20, 3.0)]
