"""The folder of a study while it runs: finds missing runs, and adds finished ones."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config
from sft_jax.config.study import COMPLETE, Setting, Study
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.locks import locked
from sft_jax.files.npz import write_npz
from sft_jax.runs.run_files import OUTPUT_NAMES, differing_settings
from sft_jax.runs.schema import write_stored
from sft_jax.runs.study_files import (
    CURVE_COLUMNS,
    CURVES,
    SCORE_COLUMNS,
    SCORES,
    predictions_path,
    read_fold_predictions,
    read_study,
    read_table,
    write_table,
)
from sft_jax.studies.folds import Fold
from sft_jax.studies.setting_runs import Trained, scores
from sft_jax.tasks import Task, from_config
from sft_jax.types import CheckpointError


class Results:
    """Reads and extends the folder of a study; every file is written atomically."""

    def __init__(self, workdir: Path, study: Study):
        """Opens or creates the folder.

        Args:
            workdir: Folder of the study.
            study: Full study, even if only a part of it is to be run.

        Raises:
            CheckpointError: The folder belongs to another study, or to another state of this one.
            DataError: A table in it is damaged.
        """
        self.workdir, self._study = workdir, study
        self._read()

    def _read(self):
        self._record = _description(self._study)
        if (self.workdir / "study.json").is_file():
            self._merge(read_study(self.workdir, resumable=True))
        self._scores = _rows(self.workdir / SCORES, SCORE_COLUMNS)
        self._curves = _rows(self.workdir / CURVES, CURVE_COLUMNS)

    def missing(self, setting: Setting, part: Study | None = None) -> list[Setting]:
        """Folds of the study, or of a part of it, on which a setting lacks a seed."""
        done = {
            (row["fold"], row["seed"]) for row in self._scores if row["setting"] == setting.name
        }
        wanted = part or self._study
        return [
            fold
            for fold in wanted.folds
            if any((fold.name, str(seed)) not in done for seed in wanted.seeds)
        ]

    def add(self, setting: Setting, trained: Trained, cost: Callable[[Config], dict[str, Any]]):
        """Adds the runs of a setting, replacing earlier results of the same runs.

        Args:
            setting: Setting of the study.
            trained: Its runs.
            cost: Maps the resolved configuration to its entries in `study.json`.

        Raises:
            CheckpointError: Earlier runs saw other data, or the disk is full or read-only.
        """
        # Another sweep may have added other settings since this one read the folder.
        with (
            convert_disk_errors(self.workdir, ", which runs what is missing"),
            locked(self.workdir, wait=True),
        ):
            self._read()
            self._add(setting, trained, cost)

    def _add(self, setting: Setting, trained: Trained, cost: Callable[[Config], dict[str, Any]]):
        for fold in trained.folds:
            self._check_source(fold)
        for position, fold in enumerate(trained.folds):
            self._save_predictions(setting, trained, position)
            source = {"test": list(fold.test_units), "source_sha256": fold.source_sha256}
            _entry(self._record["folds"], fold.name).update(source)
        legend = {name: values.tolist() for name, values in trained.task.legend.items()}
        task = {"task": trained.config.task.name, "metric": trained.task.main_metric}
        self._record.update({**legend, **task})
        _entry(self._record["settings"], setting.name).update(cost(trained.config))
        runs = {(trained.folds[fold].name, str(seed)) for fold, seed in trained.runs}

        def replace(rows: list[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict]:
            others = [
                row
                for row in rows
                if row["setting"] != setting.name or (row["fold"], row["seed"]) not in runs
            ]
            return others + [{"setting": setting.name, **row} for row in new]

        write_stored(self.workdir / "study.json", self._record)
        curves = replace(self._curves, _curve_rows(trained))
        write_table(self.workdir / CURVES, CURVE_COLUMNS, curves)
        # The scores come last, since they say which runs are done.
        write_table(self.workdir / SCORES, SCORE_COLUMNS, replace(self._scores, scores(trained)))
        self._read()

    def _check_source(self, fold: Fold):
        """Checks the source file, which all settings of a study must share, fold by fold."""
        before = _entry(self._record["folds"], fold.name).get("source_sha256")
        if before not in (None, fold.source_sha256):
            raise CheckpointError(
                f"{self.workdir}: given fold {fold.name!r} from a file of SHA-256 "
                f"{fold.source_sha256 or '(none)'}, expected {before or '(none)'}, which earlier "
                "runs were trained on; give the place of that file with --data_path, or give a new "
                "--workdir"
            )

    def _save_predictions(self, setting: Setting, trained: Trained, position: int):
        fold = trained.folds[position]
        path = predictions_path(self.workdir, setting.name, fold.name)
        names = trained.task.stored_answers
        by_seed = self._stored_predictions(path, fold, trained.task)
        complete = trained.answers["test", COMPLETE.name]
        for (run_fold, seed), answers in zip(trained.runs, complete, strict=True):
            if run_fold == position:
                by_seed[seed] = {name: answers[name].astype(np.float32) for name in names}
        seeds = sorted(by_seed)
        arrays = {
            "seed": np.array(seeds),
            trained.task.target_name: fold.splits["test"]["target"],
            "group": fold.group,
            "id": fold.ids,
            **{name: np.stack([by_seed[seed][name] for seed in seeds]) for name in names},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)

    def _stored_predictions(
        self, path: Path, fold: Fold, task: Task
    ) -> dict[int, dict[str, np.ndarray]]:
        """Stored answers of earlier runs on the same samples, by seed."""
        if not path.is_file():
            return {}
        stored = read_fold_predictions(path, self._record)
        if not np.array_equal(stored.get("id", ()), fold.ids):
            raise CheckpointError(
                f"{path}: holds predictions of other records than the study has now; give a new "
                "--workdir"
            )
        return {
            seed: {name: stored[name][position] for name in task.stored_answers}
            for position, seed in enumerate(stored["seed"].tolist())
        }

    def _merge(self, stored: dict[str, Any]):
        """Merges the stored record, whose description of existing runs must not have changed."""
        record = self._record
        changed = [key for key in ("name", "conditions") if stored[key] != record[key]]
        base = from_dict(stored["base"])
        if "auto" in (base.task.name, self._study.base.task.name):
            # The data decide, and each fold's are checked.
            base = dataclasses.replace(base, task=self._study.base.task)
        changed += ["base"] * bool(differing_settings(base, self._study.base))
        for part in ("settings", "folds"):
            current = {entry["name"]: entry for entry in record[part]}
            for entry in stored[part]:
                name = entry["name"]
                if name not in current:
                    record[part].append(entry)  # after those of the current study
                elif current[name]["overrides"] != entry["overrides"]:
                    changed.append(f"{part} {name!r}")
                else:
                    current[name].update(entry)
        record.update(
            {key: stored[key] for key in ("task", "metric", *OUTPUT_NAMES) if key in stored}
        )
        if changed:
            raise CheckpointError(
                f"{self.workdir}: holds another state of the study, which differs in "
                f"{', '.join(changed)}; give a new --workdir"
            )
        record["seeds"] = sorted({*stored["seeds"], *record["seeds"]})


def _description(study: Study) -> dict[str, Any]:
    plain = {
        "name": study.name,
        "title": study.title,
        "protocol": study.protocol,
        "metric": from_config(study.base).main_metric,
        "base": to_dict(study.base),
        "settings": list(map(dataclasses.asdict, study.settings)),
        "folds": list(map(dataclasses.asdict, study.folds)),
        "seeds": list(study.seeds),
        "conditions": [dataclasses.asdict(condition) for condition in study.conditions],
    }
    return json.loads(json.dumps(plain))


def _entry(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    return [row for _, row in read_table(path, columns)] if path.is_file() else []


def _curve_rows(trained: Trained) -> Iterable[dict[str, Any]]:
    for curve in trained.curves:
        for metric, values in curve.values.items():
            for (fold, seed), value in zip(trained.runs, values, strict=True):
                if not np.isfinite(value):  # undefined, such as the correlation of a constant
                    continue
                run = {"fold": trained.folds[fold].name, "seed": seed, "step": curve.step}
                yield {**run, "metric": metric, "value": float(value)}
