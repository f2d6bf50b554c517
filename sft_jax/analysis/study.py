"""From the folder of a study to its tables.

A score of a setting is first averaged over folds, seed by seed; mean and standard deviation are
those over seeds. So the deviation says how far a repetition of the whole cross-validation would
come out elsewhere.
"""

import csv
import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """What a study came to.

    Attributes:
        record: `study.json`.
        scores: `{(setting, split, condition, level, metric): {(fold, seed): value}}`.
    """

    record: dict[str, Any]
    scores: dict[tuple[str, ...], dict[tuple[str, int], float]]

    def by_seed(self, *key: str) -> np.ndarray:
        """Means over folds, `[seeds]`, of `(setting, split, condition, level, metric)`.

        Raises:
            DataError: there is no such score, or a seed lacks a fold that another has.
        """
        found = self.scores.get(key)
        if found is None:
            raise DataError(f"study: found no score {key}; run the sweep to its end")
        by_seed = defaultdict(dict)
        for (fold, seed), value in found.items():
            by_seed[seed][fold] = value
        folds = [sorted(values) for values in by_seed.values()]
        if any(names != folds[0] for names in folds):
            raise DataError(f"study: found folds {folds} of the seeds of {key[0]!r}; run the rest")
        return np.array([np.mean([*by_seed[seed].values()]) for seed in sorted(by_seed)])


def read_study(workdir: Path) -> StudyResults:
    """Reads the folder of a study.

    Raises:
        DataError: the folder holds none.
    """
    path = Path(workdir) / "results.csv"
    if not path.is_file():
        raise DataError(
            f"{path}: not found, expected the folder of a study; give one in which `python -m "
            "sft_jax.sweep` has finished a setting"
        )
    scores = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] for name in ("setting", "split", "condition", "level", "metric"))
            scores[key][row["fold"], int(row["seed"])] = float(row["value"])
    return StudyResults(json.loads((Path(workdir) / "study.json").read_text()), dict(scores))


def setting_rows(
    study: StudyResults, split: str = "test", condition: str = "complete", metric: str = "top1"
) -> list[dict[str, Any]]:
    """A row for each setting that has run: costs, and the metric per sample and per group.

    The difference is that to the first setting, seed by seed.

    Args:
        study: what to tabulate.
        split: `test` or `valid`.
        condition: of the test split.
        metric: such as `top1`.
    """
    rows = []
    first: dict[str, np.ndarray] = {}
    for entry in study.record["settings"]:
        name = entry["name"]
        levels = [
            level
            for level in ("sample", "group")
            if (name, split, condition, level, metric) in study.scores
        ]
        if not levels:
            continue
        row = {
            "setting": name,
            "parameters": entry.get("num_parameters"),
            "MFLOP": round(1e3 * entry["forward_gflop"], 2),
            "tokens kept": f"{entry['tokens_kept']} of {entry['tokens_in']}",
        }
        for level in levels:
            values = study.by_seed(name, split, condition, level, metric)
            row[f"{metric} per {level}"] = spread(values)
            same = level in first and first[level].shape == values.shape
            if same:
                row[f"difference per {level}"] = spread(values - first[level], sign=True)
            elif level not in first:
                first[level] = values
                row[f"difference per {level}"] = "-"
        rows.append(row)
    return rows


def spread(values: np.ndarray, sign: bool = False) -> str:
    """Mean and sample deviation of fractions, as percentages: `87.3 ± 0.4`."""
    mean = f"{100 * values.mean():{'+' if sign else ''}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * values.std(ddof=1):.1f}"
