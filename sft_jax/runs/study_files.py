"""Files of a study's folder.

- `study.json`: `name`, `title`, `protocol`, `metric`; once trained, `task` (classification if
  missing) and the names of its outputs (`class_names`, `label_names`, `value_names`); `settings`, a
  list of `{name,
  overrides}` and, once trained, `{model, num_parameters, forward_gflop, tokens_in, tokens_kept}`;
  `folds`, a list of `{name, overrides}` and, once trained on, `{test, source_sha256}`, the held-out
  units and the hash of the source file; `seeds`.
- `results.csv`: `setting,fold,seed,split,condition,level,metric,value`, one score a row.
- `curves.csv`: `setting,fold,seed,metric,value` and `step` or `epoch`.
- `predictions/<setting>-<fold>.npz`: `seed [s]`, `group [n]`, `id [n]`, and the task's targets
  `[n, ...]` and answers `[s, n, ...]` on the complete test split, such as `label` and
  `probabilities`.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.files.json_files import (
    Shape,
    anything,
    file_name,
    integer,
    list_of,
    map_of,
    nullable,
    number,
    read_text,
    record,
    text,
)
from sft_jax.files.npz import read_npz
from sft_jax.runs.array_checks import check_distributions
from sft_jax.runs.run_files import OUTPUT_NAMES
from sft_jax.runs.schema import read_stored
from sft_jax.types import CheckpointError, DataError

SCORES, CURVES = "results.csv", "curves.csv"
SCORE_COLUMNS = ("setting", "fold", "seed", "split", "condition", "level", "metric", "value")
CURVE_COLUMNS = ("setting", "fold", "seed", "step", "metric", "value")
REMEDY = "write it again with `python -m sft_jax.sweep`"
_OVERRIDES = {"overrides": map_of(anything)}
_ORIGIN = {"base": map_of(anything), "conditions": list_of(record({"name": text()}))}
_SETTING = {
    **_OVERRIDES,
    "model": text(),
    "num_parameters": integer(),
    "forward_gflop": nullable(number(least=0)),
    "tokens_in": nullable(integer()),
    "tokens_kept": nullable(integer()),
}
# What the task is and how its outputs are called.
_TASK = {"task": text(), **dict.fromkeys(OUTPUT_NAMES, list_of(text()))}
_FOLD = {**_OVERRIDES, "test": list_of(anything), "source_sha256": nullable(text())}


def study_shape(resumable: bool = False) -> Shape:
    """Shape of `study.json`.

    Args:
        resumable: Whether to require everything that decides whether a sweep may add to it.
    """
    named = {"name": file_name, **(_OVERRIDES if resumable else {})}
    required = {
        "name": file_name,
        "title": text(10_000),
        "protocol": text(100_000),
        "metric": text(),
        "settings": list_of(record(named, _SETTING), least=1),
        "folds": list_of(record(named, _FOLD), least=1),
        "seeds": list_of(integer(), least=1),
    }
    return record({**required, **(_ORIGIN if resumable else {})}, {**_ORIGIN, **_TASK})


def read_study(workdir: Path, resumable: bool = False) -> dict[str, Any]:
    """Reads `study.json`.

    Args:
        workdir: Folder of the study.
        resumable: See `study_shape`.

    Raises:
        CheckpointError: It is missing or damaged, or a name or seed appears twice.
    """
    path = workdir / "study.json"
    content = read_stored(path, study_shape(resumable), REMEDY)
    names = {what: [entry["name"] for entry in content[what]] for what in ("settings", "folds")}
    for what, values in {**names, "seeds": content["seeds"]}.items():
        if len(set(values)) < len(values):
            raise CheckpointError(f"{path}: {what}: found {values}, expected each once; {REMEDY}")
    return content


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]):
    """Writes a table as CSV, atomically; floats get six significant digits."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            value = row["value"]
            writer.writerow({**row, "value": f"{value:.6g}" if isinstance(value, float) else value})
    os.replace(partial, path)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads the line number and the cells of each row of a table.

    Args:
        path: Path of the file.
        columns: Columns that it must have.

    Raises:
        DataError: The file is no table, lacks a column, or has a row of another length.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, REMEDY, DataError), newline=""))
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}: found columns {reader.fieldnames}, expected also {missing}; {REMEDY}"
            )
        for line, row in enumerate(reader, start=2):
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {line}: found another number of fields than columns, expected "
                    f"{len(reader.fieldnames or ())}; remove the line, or {REMEDY}"
                )
            yield line, row
    except csv.Error as error:
        raise DataError(f"{path}: found no table ({error}), expected CSV; {REMEDY}") from error


def curve_axis(path: Path) -> str:
    """The horizontal axis of `curves.csv`: `epoch` if it has such a column, else `step`."""
    header = read_text(path, REMEDY, DataError).partition("\n")[0]
    return "epoch" if "epoch" in header.strip().split(",") else "step"


def predictions_path(workdir: Path, setting: str, fold: str) -> Path:
    """File with the predictions of a setting on a fold."""
    return workdir / "predictions" / f"{setting}-{fold}.npz"


def read_fold_predictions(path: Path, study: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the predictions of a setting on a fold.

    Args:
        path: Path of the file.
        study: Content of `study.json`. The answers of a classifier are checked.

    Raises:
        DataError: Entries are missing, have other shapes, or are no distributions.
    """
    entries = read_npz(path, REMEDY)
    num_classes = len(study.get("class_names", ()))
    if not num_classes or study.get("task", "classification") != "classification":
        return entries
    seed, label, probabilities = (
        entries.get(name, np.zeros(())) for name in ("seed", "label", "probabilities")
    )
    expected = (seed.size, label.size, num_classes)
    if (
        (seed.ndim, label.ndim, probabilities.shape) != (1, 1, expected)
        or seed.dtype.kind not in "iu"
        or label.dtype.kind not in "iu"
        or probabilities.dtype.kind != "f"
        or 0 in expected
    ):
        found = {name: f"{array.dtype}{list(array.shape)}" for name, array in entries.items()}
        raise DataError(
            f"{path}: found {found}, expected integers seed [s] and label [n], and probabilities "
            f"[s, n, {num_classes}]; {REMEDY}"
        )
    for rows in probabilities:
        check_distributions(path, rows, label, REMEDY)
    return entries
