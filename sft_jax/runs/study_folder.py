"""What the folder of a study holds for a report, and statistics over its folds and seeds.

- `study.json`: `name`, `title`, `protocol`, `metric`, `class_names`; `settings`, a list of `{name,
  overrides}` and, once it has run, `{model, num_parameters, forward_gflop, tokens_in,
  tokens_kept}`; `folds`, a list of `{name}` and, once one has run, `{test, source_sha256}`, what is
  held out and of which file; `seeds`.
- `results.csv`: `setting,fold,seed,split,condition,level,metric,value`, one score a row.
- `curves.csv`, which may be missing: `setting,fold,seed,metric,value` and `step` or `epoch`.
- `predictions/<setting>-<fold>.npz`, which may be missing: `seed [s]`, `label [n]`, `group [n]`,
  `id [n]`, `probabilities [s, n, c]` on the complete test split.

A study may still be running: what has no score yet is left out.
"""

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sft_jax.files.npz import read_npz
from sft_jax.files.json_files import read_text
from sft_jax.runs.layouts import STUDY
from sft_jax.runs.schema import read_stored
from sft_jax.metrics.calibration import reliability
from sft_jax.types import CheckpointError, DataError

_SWEEP = "write it again with `python -m sft_jax.sweep`"
_WHERE = ("setting", "fold", "seed")
# What sums and figures of float64 values can still hold.
_LARGEST = 1e100
# In the arrays that a table becomes, where a single line may make room for all runs of a setting.
_MOST_PLACES = 10_000_000
# Values of runs by fold and seed.
_Points = dict[tuple[int, int], float]


class Key(NamedTuple):
    """Of a score: where it was measured, and what it is."""

    setting: str
    split: str
    condition: str
    level: str
    metric: str


class Curve(NamedTuple):
    """A training curve of all runs of a setting: steps `[e]`, values `[e, folds, seeds]`."""

    steps: np.ndarray
    values: np.ndarray


class Summary(NamedTuple):
    """Of values `[folds, seeds]`; deviations are of a sample, and None where there is only one.

    Attributes:
        mean: of all runs.
        over_seeds: deviation of the seeds' means over folds.
        over_folds: deviation of the folds' means over seeds.
        by_fold: the latter means.
        runs: how many there are.
    """

    mean: float
    over_seeds: float | None
    over_folds: float | None
    by_fold: np.ndarray
    runs: int


@dataclasses.dataclass(frozen=True)
class StudyFolder:
    """A study, as far as it has run.

    Attributes:
        workdir: its folder.
        record: `study.json`.
        scores: `[folds, seeds]` of each key, NaN where a run is missing.
        curves: by setting and metric.
        axis: what curves are drawn against: `step` or `epoch`.
    """

    workdir: Path
    record: dict[str, Any]
    scores: dict[Key, np.ndarray]
    curves: dict[tuple[str, str], Curve]
    axis: str

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Those that have a score, in the study's order."""
        known = {key.setting for key in self.scores}
        return [entry for entry in self.record["settings"] if entry["name"] in known]

    @property
    def names(self) -> list[str]:
        """Of `settings`."""
        return [entry["name"] for entry in self.settings]

    @property
    def levels(self) -> list[str]:
        """Levels of the scores on the complete test split: `sample`, and `group` where there is."""
        return self._found("level", split="test", condition="complete")

    @property
    def conditions(self) -> list[str]:
        """Of the test split, `complete` first."""
        found = self._found("condition", split="test")
        return sorted(found, key=lambda name: name != "complete")

    @property
    def has_validation(self) -> bool:
        """Whether folds hold samples out to choose by."""
        return bool(self._found("level", split="valid"))

    def metrics(self, level: str) -> list[str]:
        """Of the complete test split."""
        return self._found("metric", split="test", condition="complete", level=level)

    def _checked(self, path: Path, entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`seed`, `label`, `probabilities` of a file, if they are what a sweep writes."""
        seed, label, probabilities = (
            entries.get(name, np.zeros(())) for name in ("seed", "label", "probabilities")
        )
        classes = len(self.record["class_names"])
        expected = (seed.size, label.size, classes)
        if (
            (seed.ndim, label.ndim, probabilities.shape) != (1, 1, expected)
            or seed.dtype.kind not in "iu"
            or label.dtype.kind not in "iu"
            or probabilities.dtype.kind != "f"
            or 0 in expected
        ):
            found = {name: f"{array.dtype}{list(array.shape)}" for name, array in entries.items()}
            raise DataError(
                f"{path}: found {found}, expected whole numbers seed [s] and label [n], and "
                f"probabilities [s, n, {classes}]; {_SWEEP}"
            )
        for rows in probabilities:
            try:
                reliability(rows, label)  # which checks rows and labels
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        return {"seed": seed, "label": label, "probabilities": probabilities}

    def _found(self, what: str, **where: str) -> list[str]:
        keys = (key for key in self.scores if all(getattr(key, k) == v for k, v in where.items()))
        return list(dict.fromkeys(getattr(key, what) for key in keys))

    def scores_of(
        self,
        setting: str,
        level: str,
        metric: str,
        condition: str = "complete",
        split: str = "test",
    ) -> Float[np.ndarray, "folds seeds"] | None:
        """Scores of a setting, NaN where a run is missing; None where there are none."""
        return self.scores.get(Key(setting, split, condition, level, metric))

    def predictions(self, setting: str) -> Iterator[dict[str, np.ndarray]]:
        """Those of each fold that has some."""
        for fold in self.record["folds"]:
            path = self.workdir / "predictions" / f"{setting}-{fold['name']}.npz"
            if path.is_file():
                yield self._checked(path, read_npz(path, _SWEEP))


def is_study(folder: Path) -> bool:
    """Whether a study has been begun in `folder`."""
    return (folder / "study.json").is_file()


def read_study_folder(workdir: Path) -> StudyFolder:
    """Opens the folder of a study.

    Raises:
        CheckpointError: `study.json` or `results.csv` is missing, damaged, or says too little.
        DataError: a row of a table that does not belong to the study, or is no number.
    """
    record = read_stored(workdir / "study.json", STUDY, _SWEEP)
    _check_names(workdir / "study.json", record)
    path = workdir / "results.csv"
    if not path.is_file():
        raise CheckpointError(
            f"{workdir}: found no results.csv, expected one beside study.json; let `python -m "
            "sft_jax.sweep` finish a setting"
        )
    found: dict[Key, _Points] = defaultdict(dict)
    runs = _Runs(record)
    for line, row in _rows(path, (*_WHERE, *Key._fields[1:], "value")):
        place, value = runs.place(path, line, row)
        found[Key(*(row[field] for field in Key._fields))][place] = value
    if not found:
        raise CheckpointError(
            f"{path}: found no score, expected at least one; let `python -m sft_jax.sweep` finish "
            "a setting"
        )
    runs.check_room(path, len(found))
    scores = {key: runs.array(points) for key, points in found.items()}
    axis, curves = _read_curves(workdir / "curves.csv", runs)
    study = StudyFolder(workdir, record, scores, curves, axis)
    _check_scores(path, study)
    return study


def _check_names(path: Path, record: dict[str, Any]):
    for what in ("settings", "folds"):
        names = [entry["name"] for entry in record[what]]
        if len(set(names)) < len(names):
            raise CheckpointError(
                f"{path}: {what}: found the names {names}, expected each once; {_SWEEP}"
            )
    if len(set(record["seeds"])) < len(record["seeds"]):
        raise CheckpointError(
            f"{path}: seeds: found {record['seeds']}, expected each once; {_SWEEP}"
        )


def _check_scores(path: Path, study: StudyFolder):
    """Every setting with a score must have the one that settings are compared by."""
    metric = study.record["metric"]
    for level in study.levels or ["sample"]:
        for name in study.names:
            values = study.scores_of(name, level, metric)
            if values is None or np.isnan(values).all():
                raise DataError(
                    f"{path}: found no {metric} per {level} of setting {name!r} on the complete "
                    f"test split, expected one; remove its rows, or run the sweep again"
                )


class _Runs:
    """Places of runs in arrays `[folds, seeds]`."""

    def __init__(self, record: dict[str, Any]):
        self._settings = {entry["name"] for entry in record["settings"]}
        self._folds = {entry["name"]: i for i, entry in enumerate(record["folds"])}
        self._seeds = {str(seed): i for i, seed in enumerate(record["seeds"])}

    def check_room(self, path: Path, count: int):
        """Raises `DataError` where as many arrays would be far more than their table."""
        places = count * len(self._folds) * len(self._seeds)
        if places > _MOST_PLACES:
            raise DataError(
                f"{path}: found lines for {places:,} values, most of them missing, expected at "
                f"most {_MOST_PLACES:,}; {_SWEEP}"
            )

    def array(self, points: _Points) -> np.ndarray:
        """Values in their places, NaN where there are none."""
        values = np.full((len(self._folds), len(self._seeds)), np.nan)
        for place, value in points.items():
            values[place] = value
        return values

    def place(self, path: Path, line: int, row: dict[str, str]) -> tuple[tuple[int, int], float]:
        """Fold and seed of a row, and its value."""
        known = (self._settings, self._folds, self._seeds)
        for name, names in zip(_WHERE, known, strict=True):
            if row[name] not in names:
                raise DataError(
                    f"{path}, line {line}: found {name} {row[name]!r}, expected one of study.json: "
                    f"{', '.join(map(str, names))}; run the sweep into a new folder"
                )
        value = _number(path, line, row, "value", -_LARGEST)
        return (self._folds[row["fold"]], self._seeds[row["seed"]]), value


def _number(path: Path, line: int, row: dict[str, str], name: str, least: int | float) -> float:
    """A number of a row; NaN where a metric was undefined."""
    try:
        value = float(row[name])
        if not math.isnan(value) and not least <= value <= _LARGEST:
            raise ValueError("out of range")
    except ValueError as error:
        raise DataError(
            f"{path}, line {line}: found {name} {row[name]!r}, expected a number; remove the line, "
            "or run the sweep again"
        ) from error
    return value


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a table with their numbers."""
    reader = csv.DictReader(io.StringIO(read_text(path, _SWEEP, DataError), newline=""))
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}: found columns {reader.fieldnames}, expected also {missing}; {_SWEEP}"
            )
        for line, row in enumerate(reader, start=2):
            yield line, {name: row[name] or "" for name in columns}
    except csv.Error as error:
        raise DataError(
            f"{path}: found no table ({error}), expected lines of fields; {_SWEEP}"
        ) from error


def _read_curves(path: Path, runs: _Runs) -> tuple[str, dict[tuple[str, str], Curve]]:
    if not path.is_file():
        return "step", {}
    head = read_text(path, _SWEEP, DataError).partition("\n")[0]
    axis = "epoch" if "epoch" in head.strip().split(",") else "step"
    found: dict[tuple[str, str], dict[float, _Points]] = defaultdict(lambda: defaultdict(dict))
    for line, row in _rows(path, (*_WHERE, axis, "metric", "value")):
        place, value = runs.place(path, line, row)
        step = _number(path, line, row, axis, 0)
        if math.isnan(value) or math.isnan(step):
            continue  # a metric that was undefined leaves a gap
        found[row["setting"], row["metric"]][step][place] = value
    runs.check_room(path, sum(map(len, found.values())))
    curves = {}
    for key, points in found.items():
        steps = sorted(points)
        curves[key] = Curve(np.array(steps), np.stack([runs.array(points[step]) for step in steps]))
    return axis, curves


def summarise(values: Float[np.ndarray, "folds seeds"]) -> Summary:
    """Mean and spread over folds and seeds.

    A fold or a seed of which no run is there does not count. Where single runs are missing, the
    deviations are those of the seeds with every fold and of the folds with every seed.

    Raises:
        DataError: no run is there.
    """
    there = ~np.isnan(values)
    if not there.any():
        raise DataError("summarise: found no run, expected at least one; leave the setting out")
    part = values[there.any(axis=1)][:, there.any(axis=0)]
    whole = ~np.isnan(part)
    by_seed = part[:, whole.all(axis=0)].mean(axis=0)
    by_fold = part[whole.all(axis=1)].mean(axis=1)
    return Summary(
        mean=float(np.nanmean(part)),
        over_seeds=deviation(by_seed),
        over_folds=deviation(by_fold),
        by_fold=by_fold,
        runs=int(whole.sum()),
    )


def deviation(values: Float[np.ndarray, " n"]) -> float | None:
    """Standard deviation of a sample; None of fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None
