"""A whole run folder, opened for a report; see the other modules of this room for its files."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.run import Config
from sft_jax.runs.evaluation_files import read_ablation, read_evaluations, read_predictions
from sft_jax.runs.example_file import Example, load_example
from sft_jax.runs.metric_log import NAME as LOG_NAME
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.run_files import read_config, read_data, run_file
from sft_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Run:
    """An evaluated run.

    Attributes:
        workdir: Folder of the run.
        config: Resolved configuration.
        data: Content of `data.json`.
        records: Lines of `metrics.jsonl`, by step.
        evaluations: One for each evaluated split, ordered test, valid, train, then by name.
    """

    workdir: Path
    config: Config
    data: Mapping[str, Any]
    records: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.workdir.name

    @property
    def splits(self) -> list[str]:
        """Evaluated splits."""
        return [evaluation["split"] for evaluation in self.evaluations]

    def evaluation(self, split: str) -> dict[str, Any]:
        """Evaluation of a split."""
        return self.evaluations[self.splits.index(split)]

    @functools.cached_property
    def predictions(self) -> dict[str, dict[str, np.ndarray]]:
        """Stored predictions of the evaluated splits, by split."""
        paths = {split: self.workdir / f"predictions_{split}.npz" for split in self.splits}
        specs = self.config.modalities
        return {
            split: read_predictions(path, specs, classes=self.config.task.name == "classification")
            for split, path in paths.items()
            if path.is_file()
        }

    @functools.cached_property
    def ablations(self) -> dict[str, dict[str, Any]]:
        """Stored ablations of the evaluated splits, by split."""
        paths = {split: self.workdir / f"ablation_{split}.json" for split in self.splits}
        return {split: read_ablation(path) for split, path in paths.items() if path.is_file()}

    @property
    def example(self) -> Example | None:
        """Stored recording, if there is one."""
        path = self.workdir / "example.npz"
        return load_example(path) if path.is_file() else None


def is_run(folder: Path) -> bool:
    """Whether training has started a run in `folder`."""
    return any((folder / name).is_file() for name in ("config.json", "data.json", LOG_NAME))


def read_run(workdir: Path) -> Run:
    """Opens a run folder.

    Raises:
        CheckpointError: A file is damaged, or missing, in which case the message names the command
            that writes it.
        ConfigError: The configuration has settings that this version does not know.
        DataError: The files contradict each other.
    """
    run = Run(
        workdir=workdir,
        config=read_config(workdir),
        data=read_data(workdir, "modalities"),
        records=read_metrics(run_file(workdir, LOG_NAME)),
        evaluations=read_evaluations(workdir),
    )
    _check_class_counts(run)
    return run


def _check_class_counts(run: Run):
    """Raises `DataError` unless all files agree on the number of classes."""
    if run.config.task.name != "classification" or "class_names" not in run.data:
        return
    expected = len(run.data["class_names"])
    for split, counts in run.data.get("counts", {}).items():
        if len(counts) != expected:
            raise DataError(
                f"{run.workdir / 'data.json'}: counts.{split}: found {len(counts)} classes, "
                f"expected {expected}, the number of class_names; restore the file"
            )
    for evaluation in run.evaluations:
        confusion = evaluation.get("confusion")
        if confusion and {len(row) for row in (confusion, *confusion)} != {expected}:
            lengths = sorted({len(row) for row in confusion})
            raise DataError(
                f"{run.workdir}/evaluation_{evaluation['split']}.json: confusion: found "
                f"{len(confusion)} rows of lengths {lengths}, expected {expected} classes as in "
                "data.json; write it again with `python -m sft_jax.evaluate`"
            )
