"""Mean and spread of scores over runs that differ only in their seed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.runs.evaluation_files import read_evaluations
from sft_jax.runs.run_files import differing_settings, read_config, read_data
from sft_jax.types import DataError

# Settings that may differ between runs of one setting; the other two do not affect results.
_FREE = ("train.seed", "train.log_every", "train.checkpoint_every")
_NAME = re.compile(r"(.+)-(\d+)")


def has_seed(workdir: Path) -> bool:
    """Whether the name of a run folder ends with a seed, such as `max-0`."""
    return _NAME.fullmatch(workdir.name) is not None


def runs_by_setting(workdirs: Sequence[Path]) -> dict[str, list[Path]]:
    """Groups run folders by setting: `a-0` and `a-1` belong to `a`.

    Raises:
        DataError: A name does not end with a seed.
    """
    settings: dict[str, list[Path]] = {}
    for workdir in workdirs:
        match = _NAME.fullmatch(workdir.name)
        if match is None:
            raise DataError(
                f"{workdir}: given as a run, expected a folder named after setting and seed, such "
                "as max-0; rename it"
            )
        settings.setdefault(match[1], []).append(workdir)
    return settings


def spread_rows(workdirs: Sequence[Path], split: str, metric: str) -> list[dict[str, Any]]:
    """A row for each setting: mean, standard deviation and range of a metric over its runs.

    The deviation is that of a sample, `ddof=1`; a single run has none.

    Args:
        workdirs: Folders of evaluated runs, named `<setting>-<seed>`.
        split: Evaluated split.
        metric: Name of the metric.

    Raises:
        DataError: A run lacks the split or the metric, a name has no seed, or runs of a setting do
            not differ in their seed alone.
    """
    rows = []
    for setting, folders in runs_by_setting(workdirs).items():
        _check_only_seeds_differ(setting, folders)
        levels = [_values(folder, split, metric) for folder in folders]
        row: dict[str, Any] = {"setting": setting, "runs": len(folders)}
        for level in levels[0]:
            values = np.array([found[level] for found in levels])
            row[f"{metric} per {level}"] = round(float(values.mean()), 4)
            row[f"deviation per {level}"] = (
                round(float(values.std(ddof=1)), 4) if len(values) > 1 else None
            )
            row[f"range per {level}"] = f"{values.min():.4f} to {values.max():.4f}"
        rows.append(row)
    return rows


def _check_only_seeds_differ(setting: str, folders: Sequence[Path]):
    """Raises `DataError` unless the runs of a setting differ in their seed alone."""
    first, *others = folders
    first_config, first_data = read_config(first), read_data(first)
    seeds = [first_config.train.seed]
    remedy = "rename one of the folders, or give them in separate calls"
    for folder in others:
        config, data = read_config(folder), read_data(folder)
        found, expected = (of.get("fingerprint", "none") for of in (data, first_data))
        if found != expected:
            raise DataError(
                f"{folder}: found the data fingerprint {found}, expected {expected}, as in "
                f"{first}, since both are named as runs of {setting!r}; {remedy}"
            )
        changed = [path for path in differing_settings(first_config, config) if path not in _FREE]
        if changed:
            raise DataError(
                f"{folder}: found other values of {', '.join(changed)} than in {first}, expected "
                f"runs of {setting!r} to differ in train.seed alone; {remedy}"
            )
        seeds.append(config.train.seed)
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"{setting}: found runs with train.seed {', '.join(map(str, seeds))}, expected each "
            "seed once; give one run for each seed"
        )


def _values(workdir: Path, split: str, metric: str) -> Mapping[str, float]:
    """The metric of one run, per sample and, where samples are grouped, per group."""
    evaluations = {found["split"]: found for found in read_evaluations(workdir)}
    if split not in evaluations:
        raise DataError(
            f"{workdir}: found evaluations of {sorted(evaluations)}, expected one of {split!r}; "
            "run `python -m sft_jax.evaluate` on it"
        )
    evaluation = evaluations[split]
    if metric not in evaluation["metrics"]:
        raise DataError(
            f"{workdir}: found no metric {metric!r} on {split!r}, expected one of "
            f"{sorted(evaluation['metrics'])}"
        )
    found = {"sample": evaluation["metrics"][metric]["value"]}
    group = evaluation.get("group")
    if group is not None and metric in group:
        found["group"] = group[metric]["value"]
    if None in found.values():
        raise DataError(
            f"{workdir}: found no value of {metric!r} on {split!r}, expected a number; choose a "
            "metric that is defined in every run"
        )
    return found
