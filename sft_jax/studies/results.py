"""The folder of a study: what was asked for, and the numbers that came out, setting by setting.

study.json                       settings, folds, seeds, costs
results.csv                      one score a row
curves.csv                       one value of a training curve a row
predictions/<setting>-<fold>.npz probabilities on the test split
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.io import to_dict
from sft_jax.config.run import Config
from sft_jax.config.study import COMPLETE, Setting, Study
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.json_files import anything, both, listed, mapped, read_text, record
from sft_jax.files.locks import locked
from sft_jax.files.npz import read_npz
from sft_jax.runs.layouts import STUDY
from sft_jax.runs.schema import read_stored, stamped
from sft_jax.studies.folds import Fold
from sft_jax.studies.setting_runs import Trained, scores
from sft_jax.training.run import write_json, write_npz
from sft_jax.types import CheckpointError

SCORES = ("setting", "fold", "seed", "split", "condition", "level", "metric", "value")
CURVES = ("setting", "fold", "seed", "step", "metric", "value")
_NEW = "restore the file, or give a new --workdir"
_PART = listed(record({"overrides": mapped(anything)}))


_RECORD = both(
    STUDY,
    record({"base": mapped(anything), "conditions": anything, "settings": _PART, "folds": _PART}),
)


class Results:
    """Reads and extends the folder of a study; each file is there whole or not at all."""

    def __init__(self, workdir: Path, study: Study):
        """Opens a folder, or begins one.

        Args:
            workdir: the folder.
            study: the whole of it, even where only a part is to be run.

        Raises:
            CheckpointError: it belongs to another study, or to another state of this one.
        """
        self.workdir, self._study = workdir, study
        self._read()

    def _read(self):
        self._record = _description(self._study)
        path = self.workdir / "study.json"
        if path.is_file():
            self._join(read_stored(path, _RECORD, _NEW))
        self._scores, self._curves = (
            _read_csv(self.workdir / name, columns)
            for name, columns in (("results.csv", SCORES), ("curves.csv", CURVES))
        )

    def missing(self, setting: Setting, part: Study | None = None) -> list[Setting]:
        """Folds of the study, or of a part of it, on which a setting lacks a seed."""
        done = {
            (row["fold"], int(row["seed"]))
            for row in self._scores
            if row["setting"] == setting.name
        }
        wanted = self._study if part is None else part
        return [
            fold
            for fold in wanted.folds
            if any((fold.name, seed) not in done for seed in wanted.seeds)
        ]

    def add(self, setting: Setting, trained: Trained, cost: Callable[[Config], dict[str, Any]]):
        """Adds what a setting came to, in place of what was there of the same runs.

        Args:
            setting: of the study.
            trained: what it came to.
            cost: what the resolved configuration costs, for `study.json`.

        Raises:
            CheckpointError: the runs that are there are of other data, or the disk is full or may
                not be written to.
        """
        outcome = ", which runs what is missing"
        # Another sweep may have finished other settings meanwhile, or be about to.
        with convert_disk_errors(self.workdir, outcome), locked(self.workdir, wait=True):
            self._read()
            self._add(setting, trained, cost)

    def _add(self, setting: Setting, trained: Trained, cost: Callable[[Config], dict[str, Any]]):
        for data in trained.folds:
            self._check_source(data)
        (self.workdir / "predictions").mkdir(parents=True, exist_ok=True)
        for fold, data in enumerate(trained.folds):
            self._save_predictions(setting, trained, fold)
            own = {"test": list(data.test_units), "source_sha256": data.source_sha256}
            _named(self._record["folds"], data.name).update(own)
            self._record["class_names"] = list(data.class_names)
        _named(self._record["settings"], setting.name).update(cost(trained.config))
        runs = {(trained.folds[fold].name, seed) for fold, seed in trained.runs}

        def others(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
            def replaced(row):
                return row["setting"] == setting.name and (row["fold"], int(row["seed"])) in runs

            return [row for row in rows if not replaced(row)]

        name = {"setting": setting.name}
        self._curves = others(self._curves) + [name | row for row in _curve_rows(trained)]
        self._scores = others(self._scores) + [name | row for row in scores(trained)]
        write_json(self.workdir / "study.json", stamped(self._record))
        _write_csv(self.workdir / "curves.csv", CURVES, self._curves)
        _write_csv(self.workdir / "results.csv", SCORES, self._scores)  # last: it says what is done

    def _check_source(self, data: Fold):
        """Differences between settings are paired by fold, so a fold is of one file."""
        before = _named(self._record["folds"], data.name).get("source_sha256")
        if before not in (None, data.source_sha256):
            raise CheckpointError(
                f"{self.workdir}: given fold {data.name!r} from a file of SHA-256 "
                f"{data.source_sha256 or '(none)'}, expected {before or '(none)'}, which the runs "
                "that are there have seen; bring back that file, or give a new --workdir"
            )

    def _save_predictions(self, setting: Setting, trained: Trained, fold: int):
        data = trained.folds[fold]
        own = [i for i, (f, _) in enumerate(trained.runs) if f == fold]
        found = trained.probabilities["test", COMPLETE.name]
        path = self.workdir / "predictions" / f"{setting.name}-{data.name}.npz"
        by_seed = _kept_predictions(path, data.ids)
        by_seed |= {trained.runs[i][1]: found[i].astype(np.float32) for i in own}
        arrays = {
            "seed": np.array(sorted(by_seed)),
            "label": data.splits["test"]["label"],
            "group": data.group,
            "id": data.ids,
            "probabilities": np.stack([by_seed[seed] for seed in sorted(by_seed)]),
        }
        write_npz(path, arrays)

    def _join(self, before: dict[str, Any]):
        """Takes over what is known already; what is said of runs that are there must not change."""
        now = self._record
        changed = [key for key in ("name", "base", "conditions") if before[key] != now[key]]
        for part in ("settings", "folds"):
            own = {entry["name"]: entry for entry in now[part]}
            for entry in before[part]:
                name = entry["name"]
                if name not in own:
                    now[part].append(entry)  # behind those that the study has now
                elif own[name]["overrides"] != entry["overrides"]:
                    changed.append(f"{part} {name!r}")
                else:
                    own[name].update(entry)
        now["class_names"] = before["class_names"]
        if changed:
            raise CheckpointError(
                f"{self.workdir}: holds another state of the study, which differs in "
                f"{', '.join(changed)}; give a new --workdir"
            )
        now["seeds"] = sorted({*before["seeds"], *now["seeds"]})


def _description(study: Study) -> dict[str, Any]:
    plain = {
        "name": study.name,
        "title": study.title,
        "protocol": study.protocol,
        "metric": "top1",
        "class_names": [],
        "base": to_dict(study.base),
        "settings": list(map(dataclasses.asdict, study.settings)),
        "folds": list(map(dataclasses.asdict, study.folds)),
        "seeds": list(study.seeds),
        "conditions": [dataclasses.asdict(condition) for condition in study.conditions],
    }
    return json.loads(json.dumps(plain))


def _kept_predictions(path: Path, ids: np.ndarray) -> dict[int, np.ndarray]:
    """Probabilities `[n, c]` by seed that are there already, of the same records."""
    if not path.is_file():
        return {}
    file = read_npz(path, "remove it, and run its settings again", CheckpointError)
    rows, seeds = (file.get(name, np.zeros(())) for name in ("probabilities", "seed"))
    if not np.array_equal(file.get("id", ()), ids):
        raise CheckpointError(
            f"{path}: holds predictions of other records than the study has now; give a new "
            "--workdir"
        )
    if seeds.ndim != 1 or rows.ndim != 3 or rows.shape[:2] != (len(seeds), len(ids)):
        raise CheckpointError(
            f"{path}: found seed {seeds.shape} and probabilities {rows.shape}, expected [s] and "
            f"[s, {len(ids)}, c]; remove it, and run its settings again"
        )
    return dict(zip(seeds.tolist(), rows, strict=True))


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _curve_rows(trained: Trained) -> Iterable[dict[str, Any]]:
    for curve in trained.curves:
        for metric, values in curve.values.items():
            for (fold, seed), value in zip(trained.runs, values, strict=True):
                where = {"fold": trained.folds[fold].name, "seed": seed, "step": curve.step}
                yield {**where, "metric": metric, "value": float(value)}


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    content = io.StringIO(read_text(path, _NEW), newline="")
    try:
        reader = csv.DictReader(content)
        rows = list(reader)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"no column {', '.join(missing)}")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"a line of other length than the first: {row}")
            int(row["seed"])
    except (csv.Error, ValueError) as error:
        raise CheckpointError(
            f"{path}: found no table of a sweep ({str(error)[:300]}), expected the columns "
            f"{', '.join(columns)}; {_NEW}"
        ) from error
    return rows


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[dict[str, Any]]):
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            value = row["value"]
            writer.writerow({**row, "value": f"{value:.6g}" if isinstance(value, float) else value})
    os.replace(partial, path)
