"""The files that an evaluation leaves in the folder of a run."""

import errno
import json
import os

import numpy as np
import pytest

from sft_jax.runs import schema
from sft_jax.runs.evaluation_files import write_evaluation
from sft_jax.types import CheckpointError


def test_they_say_what_wrote_them(tmp_path):
    found = {"evaluation": {"split": "test", "step": 3}, "ablation": {"without": {}}}
    predictions = {"label": np.arange(3)}
    write_evaluation(tmp_path, "test", found["evaluation"], predictions, found["ablation"])
    for name, content in found.items():
        path = tmp_path / f"{name}_test.json"
        stored = json.loads(path.read_text())
        assert stored["schema"] == schema.SCHEMA
        assert schema.accepted(stored, path) == content
    with np.load(tmp_path / "predictions_test.npz") as file:
        assert file["label"].tolist() == [0, 1, 2]


def test_predictions_are_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    write_evaluation(tmp_path, "test", {}, {"label": np.arange(3)})
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(CheckpointError, match=r"predictions_test.* give the same command again$"):
        write_evaluation(tmp_path, "test", {}, {"label": np.arange(4)})
    with np.load(tmp_path / "predictions_test.npz") as file:
        assert file["label"].tolist() == [0, 1, 2]
