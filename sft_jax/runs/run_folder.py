"""What a run folder holds for a report, and how it is read.

What is read (every fraction is between 0 and 1, every loss in nats):

- `config.json`: the run's configuration, as `config_io.to_dict` writes it.
- `data.json`: `class_names`; `modalities`, a list of `{name, length, feature_dim}`; `counts`, for
  each split the samples of each class, `{split: [c]}`; optionally `groups`, `{split: number}`,
  `num_parameters`, and `command`, the command line that trained the run.
- `metrics.jsonl`: one object a line, `{kind: "train"|"valid", step, epoch, loss, top1}`, for
  `train` also `learning_rate`, `gradient_norm`, `samples_per_second`. Where a step is there twice
  (a run that was resumed), the last line holds.
- `evaluation_<split>.json`, what `training.metrics.evaluate` returns: `split`, `step`,
  `num_samples`; `metrics`, for `top1`, `top3`, `top5`, `loss`, `macro_f1`, `mAP`, `mAUC`, `d_prime`
  `{value, low, high}`; `ranked_by` ("logits" or "probabilities", what mAP and mAUC rank);
  `absent_classes`, names; `resampled` ("sample" or "group", what the bootstrap drew); `majority`,
  its `class` and what it reaches in each metric but the loss; `per_class`, a list of
  `{class, precision, recall, f1, support}`; `confusion` `[c][c]`; `group`, null or
  `{num_groups, top1: {value, low, high}}`; `sentiment`, null or for each metric of
  `training.sentiment` `{value, low, high, majority, num_samples, left_out}`. A value that is
  undefined is null, and so are the ends of an interval where there is none.
- `example.npz`, one recording: for each modality `signal/<m>` `[t, f]`, `kept/<m>` `[k]` (token
  indices, -1 in empty slots), `saliency/<m>` `[k]`, `span/<m>` `[tokens, 2]` (first time step and
  the one past the last); `sampling_rate` (time steps a second) and `title`.

- `predictions_<split>.npz`: `id`, `group` (text), `label`, `predicted` (integers) `[n]`,
  `probabilities` `[n, c]` float32, and for each modality `kept/<m>/indices` and
  `kept/<m>/saliency` `[n, k]`.
- `ablation_<split>.json`, what `training.ablation.ablation` returns.

The last three may be missing; a report leaves out what it would say of them. All JSON but the log
also has `schema` and `sft_jax`, the version that wrote it (`sft_jax.runs.schema`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config import io as config_io
from sft_jax.runs.run_checks import check_agreement, checked_example, checked_predictions
from sft_jax.files.npz import read_npz
from sft_jax.config.run import Config
from sft_jax.files.json_files import anything, mapped, read_lines
from sft_jax.runs.layouts import ABLATION, EVALUATION, METRIC_LINE, data_of_run
from sft_jax.runs.schema import read_stored
from sft_jax.types import CheckpointError, DataError

SPLIT_ORDER = ("test", "valid", "train")
_FILES = ("config.json", "data.json", "metrics.jsonl")
_EVALUATE = "write it again with `python -m sft_jax.evaluate`"
_RESTORE = "restore the file, or train into a new workdir"


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording and what the model kept of it.

    Attributes:
        signals: `{m: [t, f]}`.
        kept: `{m: [k]}` token indices, -1 in empty slots.
        saliency: `{m: [k]}`, or None.
        spans: `{m: [tokens, 2]}` time steps `(start, stop)` of every token.
        sampling_rate: time steps a second.
        title: heading of the figure.
    """

    signals: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    saliency: Mapping[str, np.ndarray] | None
    spans: Mapping[str, np.ndarray]
    sampling_rate: float
    title: str


def save_example(path: Path, example: Example) -> Path:
    """Writes `example` as `.npz` (see the top of this module) and returns `path`."""
    entries: dict[str, Any] = {
        "sampling_rate": np.float64(example.sampling_rate),
        "title": np.str_(example.title),
    }
    for prefix, arrays in (
        ("signal", example.signals),
        ("kept", example.kept),
        ("saliency", example.saliency or {}),
        ("span", example.spans),
    ):
        entries |= {f"{prefix}/{name}": array for name, array in arrays.items()}
    np.savez_compressed(path, **entries)
    return path


def load_example(path: Path) -> Example:
    """Reads what `save_example` wrote; raises `DataError` when an entry is missing."""
    entries = read_npz(path, _EVALUATE)
    names = [key.removeprefix("signal/") for key in entries if key.startswith("signal/")]
    wanted = [f"{prefix}/{name}" for prefix in ("kept", "span") for name in names]
    missing = [key for key in (*wanted, "sampling_rate", "title") if key not in entries]
    if missing or not names:
        raise DataError(
            f"{path}: found {sorted(entries)}, expected also {missing or 'signal/<modality>'}; "
            "write it with `python -m sft_jax.evaluate`"
        )
    parts = {
        prefix: {m: entries[f"{prefix}/{m}"] for m in names if f"{prefix}/{m}" in entries}
        for prefix in ("signal", "kept", "saliency", "span")
    }
    checked_example(path, names, entries)
    return Example(
        signals=parts["signal"],
        kept=parts["kept"],
        saliency=parts["saliency"] or None,
        spans=parts["span"],
        sampling_rate=float(entries["sampling_rate"]),
        title=str(entries["title"]),
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was evaluated.

    Attributes:
        workdir: its folder.
        config: its resolved configuration.
        data: content of `data.json`.
        records: lines of `metrics.jsonl`, by step.
        evaluations: one a split; test, valid, train, then by name.
    """

    workdir: Path
    config: Config
    data: Mapping[str, Any]
    records: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.workdir.name

    @property
    def splits(self) -> list[str]:
        """Those that were evaluated."""
        return [evaluation["split"] for evaluation in self.evaluations]

    def evaluation(self, split: str) -> dict[str, Any]:
        """That of a split."""
        return self.evaluations[self.splits.index(split)]

    @functools.cached_property
    def predictions(self) -> dict[str, dict[str, np.ndarray]]:
        """`predictions_<split>.npz` of the evaluated splits that have one, by split."""
        paths = {split: self.workdir / f"predictions_{split}.npz" for split in self.splits}
        return {
            split: checked_predictions(path, read_npz(path, _EVALUATE), self.config.modalities)
            for split, path in paths.items()
            if path.is_file()
        }

    @functools.cached_property
    def ablations(self) -> dict[str, dict[str, Any]]:
        """`ablation_<split>.json` of the evaluated splits that have one, by split."""
        paths = {split: self.workdir / f"ablation_{split}.json" for split in self.splits}
        remedy = "write it again with `python -m sft_jax.evaluate --ablate`"
        return {
            split: read_stored(path, ABLATION, remedy)
            for split, path in paths.items()
            if path.is_file()
        }

    @property
    def example(self) -> Example | None:
        """The recording that was kept to be drawn."""
        path = self.workdir / "example.npz"
        return load_example(path) if path.is_file() else None


def is_run(folder: Path) -> bool:
    """Whether training has begun a run in `folder`."""
    return any((folder / name).is_file() for name in _FILES)


def read_run(workdir: Path) -> Run:
    """Opens a run folder.

    Raises:
        CheckpointError: a file of the run is missing, and the message names the command that makes
            it; or is damaged.
        ConfigError: a configuration that this version does not know.
        DataError: files that disagree.
    """
    for name in _FILES:
        if not (workdir / name).is_file():
            raise CheckpointError(
                f"{workdir}: found no {name}, expected a run folder; make one with "
                f"`python -m sft_jax.train --config=configs/<run>.py --workdir={workdir}`"
            )
    data = data_of_run("class_names", "modalities", "counts")
    run = Run(
        workdir=workdir,
        config=config_io.from_dict(
            read_stored(workdir / "config.json", mapped(anything), _RESTORE)
        ),
        data=read_stored(workdir / "data.json", data, _RESTORE),
        records=read_metrics(workdir / "metrics.jsonl"),
        evaluations=read_evaluations(workdir),
    )
    check_agreement(workdir, run.data, run.records, run.evaluations)
    return run


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a `metrics.jsonl`, ordered by step; the last one of a kind and step holds.

    Raises:
        CheckpointError: a line is not a record, or there is none.
    """
    records = {}
    remedy = "a run that was cut off may have left it: remove the line"
    for record in read_lines(path, METRIC_LINE, remedy):
        records[record["kind"], record["step"]] = record
    if not records:
        raise CheckpointError(
            f"{path}: found no record, expected what training logs; let `python -m sft_jax.train` "
            "run past its first train.log_every steps"
        )
    return [records[key] for key in sorted(records, key=lambda key: (key[1], key[0]))]


def read_evaluations(workdir: Path) -> list[dict[str, Any]]:
    """What `evaluate` left in a run folder, one a split: test, valid, train, then by name.

    Raises:
        CheckpointError: there is none.
    """
    paths = sorted(workdir.glob("evaluation_*.json"))
    evaluations = [read_stored(path, EVALUATION, _EVALUATE) for path in paths]
    if not evaluations:
        raise CheckpointError(
            f"{workdir}: found no evaluation_<split>.json; make one with "
            f"`python -m sft_jax.evaluate --workdir={workdir} --split=test`"
        )
    for path, evaluation in zip(paths, evaluations, strict=True):
        if path.stem != f"evaluation_{evaluation['split']}":
            raise CheckpointError(
                f"{path}: found split {evaluation['split']!r}, expected the one that the file is "
                f"named after; {_EVALUATE}"
            )
    order = {split: i for i, split in enumerate(SPLIT_ORDER)}
    return sorted(evaluations, key=lambda e: (order.get(e["split"], len(order)), e["split"]))
