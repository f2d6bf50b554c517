"""A study's folder, opened for a report, and statistics over its folds and seeds.

The study may still be running: what has no score yet is left out.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sft_jax.runs.array_checks import same_values
from sft_jax.runs.study_files import (
    CURVES,
    REMEDY,
    SCORE_COLUMNS,
    SCORES,
    curve_axis,
    predictions_path,
    read_fold_predictions,
    read_study,
    read_table,
)
from sft_jax.types import CheckpointError, DataError

_RUN = ("setting", "fold", "seed")
_LARGEST = 1e100  # sums and squares of such values are still finite
# Limit on the entries of the arrays, since one row of a table allocates all runs of a setting.
_MOST_ENTRIES = 10_000_000
# `{(fold, seed): value}`, both as positions.
_Values = dict[tuple[int, int], float]


class Key(NamedTuple):
    """Identifies a score of a setting."""

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
    """Statistics of values `[folds, seeds]`; a deviation of fewer than two values is None.

    Attributes:
        mean: Mean over all runs.
        over_seeds: Standard deviation of the seeds' means over folds.
        over_folds: Standard deviation of the folds' means over seeds.
        by_fold: Mean over seeds of each complete fold.
        runs: Number of runs.
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
        workdir: Folder of the study.
        record: Content of `study.json`.
        scores: Scores `[folds, seeds]`, NaN where a run is missing.
        curves: Training curves by setting and metric.
        axis: Horizontal axis of the curves, `step` or `epoch`.
    """

    workdir: Path
    record: dict[str, Any]
    scores: dict[Key, np.ndarray]
    curves: dict[tuple[str, str], Curve]
    axis: str

    @property
    def metric(self) -> str:
        """Name of the metric that settings are compared by."""
        return self.record["metric"]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Settings that have a score, in the study's order."""
        scored = {key.setting for key in self.scores}
        return [entry for entry in self.record["settings"] if entry["name"] in scored]

    @property
    def names(self) -> list[str]:
        """Names of `settings`."""
        return [entry["name"] for entry in self.settings]

    @property
    def levels(self) -> list[str]:
        """Levels scored on the complete test split: `sample`, and `group` if data have groups."""
        return self._values_of("level", split="test", condition="complete")

    @property
    def conditions(self) -> list[str]:
        """Conditions of the test split, `complete` first."""
        conditions = self._values_of("condition", split="test")
        return sorted(conditions, key=lambda name: name != "complete")

    @property
    def has_validation(self) -> bool:
        """Whether folds have a validation split."""
        return bool(self._values_of("level", split="valid"))

    def metrics(self, level: str) -> list[str]:
        """Metrics scored on the complete test split."""
        return self._values_of("metric", split="test", condition="complete", level=level)

    def _values_of(self, field: str, **where: str) -> list[str]:
        """Distinct values of a field of the keys that match `where`, in order."""
        keys = (key for key in self.scores if all(getattr(key, k) == v for k, v in where.items()))
        return list(dict.fromkeys(getattr(key, field) for key in keys))

    def scores_of(
        self,
        setting: str,
        level: str,
        metric: str,
        condition: str = "complete",
        split: str = "test",
    ) -> Float[np.ndarray, "folds seeds"] | None:
        """Scores of a setting, NaN where a run is missing; None if there are none."""
        return self.scores.get(Key(setting, split, condition, level, metric))

    def summaries(
        self, level: str, metric: str, condition: str = "complete", split: str = "test"
    ) -> dict[str, Summary]:
        """Summary of a score by setting, of the settings that have it."""
        scores = {
            name: self.scores_of(name, level, metric, condition, split) for name in self.names
        }
        return {name: summarise(values) for name, values in scores.items() if values is not None}

    def predictions(self, setting: str) -> dict[str, dict[str, np.ndarray]]:
        """Stored predictions of a setting by the name of their fold."""
        folds = [fold["name"] for fold in self.record["folds"]]
        paths = {fold: predictions_path(self.workdir, setting, fold) for fold in folds}
        return {
            fold: read_fold_predictions(path, self.record)
            for fold, path in paths.items()
            if path.is_file()
        }

    @functools.cached_property
    def unpaired_settings(self) -> list[str]:
        """Settings that were tested on other samples than the first one, by id or label.

        Only folds with stored predictions of both settings can tell.
        """
        first, *others = self.names
        expected = self._tested_samples(first)
        unpaired = []
        for name in others:
            found = self._tested_samples(name)
            shared = found.keys() & expected.keys()
            if not all(same_values(found[key], expected[key]) for key in shared):
                unpaired.append(name)
        return unpaired

    def _tested_samples(self, setting: str) -> dict[tuple[str, str], Any]:
        """Ids and targets of the test samples, by fold and entry."""
        return {
            (fold, entry): stored.get(entry)
            for fold, stored in self.predictions(setting).items()
            for entry in ("id", "label", "true_labels", "true_value")
        }


def is_study(folder: Path) -> bool:
    """Whether a study has been started in `folder`."""
    return (folder / "study.json").is_file()


def read_study_folder(workdir: Path) -> StudyFolder:
    """Opens the folder of a study.

    Raises:
        CheckpointError: `study.json` or `results.csv` is missing, damaged, or has no scores.
        DataError: A row of a table does not belong to the study, or is not a number.
    """
    record = read_study(workdir)
    path = workdir / SCORES
    if not path.is_file():
        raise CheckpointError(
            f"{workdir}: found no results.csv, expected one beside study.json; let `python -m "
            "sft_jax.sweep` finish a setting"
        )
    values: dict[Key, _Values] = defaultdict(dict)
    grid = _Grid(record)
    for line, row in read_table(path, SCORE_COLUMNS):
        position, value = grid.locate(path, line, row)
        values[Key(*(row[field] for field in Key._fields))][position] = value
    if not values:
        raise CheckpointError(
            f"{path}: found no score, expected at least one; let `python -m sft_jax.sweep` finish "
            "a setting"
        )
    grid.check_size(path, len(values))
    scores = {key: grid.array(of) for key, of in values.items()}
    axis, curves = _read_curves(workdir / CURVES, grid)
    study = StudyFolder(workdir, record, scores, curves, axis)
    for level in study.levels or ["sample"]:
        for name in study.names:
            found = study.scores_of(name, level, study.metric)
            if found is None or np.isnan(found).all():
                raise DataError(
                    f"{path}: found no {study.metric} per {level} of setting {name!r} on the "
                    "complete test split, expected one; remove its rows, or run the sweep again"
                )
    return study


class _Grid:
    """Positions of runs in arrays `[folds, seeds]`."""

    def __init__(self, record: dict[str, Any]):
        self._settings = {entry["name"] for entry in record["settings"]}
        self._folds = {entry["name"]: i for i, entry in enumerate(record["folds"])}
        self._seeds = {str(seed): i for i, seed in enumerate(record["seeds"])}

    def check_size(self, path: Path, count: int):
        """Raises `DataError` if `count` arrays would be far larger than their table."""
        entries = count * len(self._folds) * len(self._seeds)
        if entries > _MOST_ENTRIES:
            raise DataError(
                f"{path}: found lines for {entries:,} values, most of them missing, expected at "
                f"most {_MOST_ENTRIES:,}; {REMEDY}"
            )

    def array(self, values: _Values) -> np.ndarray:
        """Values at their positions, NaN elsewhere."""
        array = np.full((len(self._folds), len(self._seeds)), np.nan)
        for position, value in values.items():
            array[position] = value
        return array

    def locate(self, path: Path, line: int, row: dict[str, str]) -> tuple[tuple[int, int], float]:
        """Position and value of a row."""
        known = (self._settings, self._folds, self._seeds)
        for field, names in zip(_RUN, known, strict=True):
            if row[field] not in names:
                raise DataError(
                    f"{path}, line {line}: found {field} {row[field]!r}, expected one of "
                    f"study.json: {', '.join(map(str, names))}; run the sweep into a new folder"
                )
        value = _number(path, line, row, "value", -_LARGEST)
        return (self._folds[row["fold"]], self._seeds[row["seed"]]), value


def _number(path: Path, line: int, row: dict[str, str], name: str, least: int | float) -> float:
    """A number of a row; NaN if a metric was undefined."""
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


def _read_curves(path: Path, grid: _Grid) -> tuple[str, dict[tuple[str, str], Curve]]:
    if not path.is_file():
        return "step", {}
    axis = curve_axis(path)
    found: dict[tuple[str, str], dict[float, _Values]] = defaultdict(lambda: defaultdict(dict))
    for line, row in read_table(path, (*_RUN, axis, "metric", "value")):
        position, value = grid.locate(path, line, row)
        step = _number(path, line, row, axis, 0)
        if math.isnan(value) or math.isnan(step):
            continue  # an undefined metric leaves a gap
        found[row["setting"], row["metric"]][step][position] = value
    grid.check_size(path, sum(map(len, found.values())))
    curves = {}
    for key, points in found.items():
        steps = sorted(points)
        curves[key] = Curve(np.array(steps), np.stack([grid.array(points[step]) for step in steps]))
    return axis, curves


def summarise(values: Float[np.ndarray, "folds seeds"]) -> Summary:
    """Mean and spread over folds and seeds.

    Folds and seeds without any run are left out. If single runs are missing, the deviations are
    those of the seeds that have every fold and of the folds that have every seed.

    Raises:
        DataError: There is no run.
    """
    present = ~np.isnan(values)
    if not present.any():
        raise DataError("summarise: found no run, expected at least one; leave the setting out")
    part = values[present.any(axis=1)][:, present.any(axis=0)]
    present = ~np.isnan(part)
    by_seed = part[:, present.all(axis=0)].mean(axis=0)
    by_fold = part[present.all(axis=1)].mean(axis=1)
    return Summary(
        mean=float(np.nanmean(part)),
        over_seeds=deviation(by_seed),
        over_folds=deviation(by_fold),
        by_fold=by_fold,
        runs=int(present.sum()),
    )


def deviation(values: Float[np.ndarray, " n"]) -> float | None:
    """Standard deviation of a sample (`ddof=1`); None of fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else None
