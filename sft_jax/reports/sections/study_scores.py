"""Numbers of a study as rows of tables, and what is drawn of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.metrics.calibration import Reliability, calibration_error, named_class, reliability
from sft_jax.metrics.classification import confusion_matrix
from sft_jax.reports.figures.result_plots import Band, Point, frontier
from sft_jax.reports.tables import change_of, figure_of, spread_of
from sft_jax.runs.study_folder import StudyFolder, Summary, deviation, summarise


def with_spread(metric: str, summary: Summary) -> str | None:
    """`mean ± deviation over seeds`, or the mean alone."""
    mean = figure_of(metric, summary.mean)
    spread = spread_of(metric, summary.over_seeds)
    return mean if spread is None else f"{mean} \u00b1 {spread}"


def summaries(
    study: StudyFolder, level: str, metric: str, condition: str = "complete", split: str = "test"
) -> dict[str, Summary]:
    """By setting, of scores on a split; settings without one are left out."""
    where = (level, metric, condition, split)
    scores = {name: study.scores_of(name, *where) for name in study.names}
    return {name: summarise(values) for name, values in scores.items() if values is not None}


def overview_rows(study: StudyFolder) -> list[dict[str, Any]]:
    """What each setting reaches, per sample and per group, beside what it costs."""
    unit, scale = cost_unit(study)
    metric = study.record["metric"]
    found = {level: summaries(study, level, metric) for level in study.levels}
    rows = []
    for entry in study.settings:
        row = {"setting": entry["name"]}
        for level, of in found.items():
            name = entry["name"]
            row[f"{metric} per {level}"] = with_spread(metric, of[name]) if name in of else None
        gflop = entry.get("forward_gflop")
        row[unit] = None if gflop is None else f"{scale * gflop:.2f}"
        row["tokens in"], row["tokens kept"] = entry.get("tokens_in"), entry.get("tokens_kept")
        rows.append(row)
    return rows


def setting_rows(
    study: StudyFolder, level: str, metric: str, split: str = "test"
) -> list[dict[str, Any]]:
    """Each setting's metric with its spread, and the paired difference to the first setting.

    Differences are between runs of the same fold and seed, so that what makes a fold hard or a seed
    lucky for all of them cancels.
    """
    rows = []
    first: np.ndarray | None = None
    for name, summary in summaries(study, level, metric, split=split).items():
        values = study.scores_of(name, level, metric, split=split)
        row = {
            "setting": name,
            "runs": summary.runs,
            metric: figure_of(metric, summary.mean),
            "sd over seeds": spread_of(metric, summary.over_seeds),
            "sd over folds": spread_of(metric, summary.over_folds),
        }
        if first is None:
            first = values
        elif not np.isnan(values - first).all():
            paired = values - first
            change = summarise(paired)
            better = (paired < 0).sum() if metric == "loss" else (paired > 0).sum()
            row |= {
                "difference": change_of(metric, change.mean),
                "its sd over seeds": spread_of(metric, change.over_seeds),
                "its sd over folds": spread_of(metric, change.over_folds),
                "better in": f"{better} of {change.runs}",
            }
        rows.append(row)
    return rows


def metric_rows(study: StudyFolder) -> list[dict[str, Any]]:
    """Every other metric of each setting, per sample and per group."""
    rows: list[dict[str, Any]] = [{"setting": name} for name in study.names]
    for level in study.levels:
        for metric in study.metrics(level):
            if metric == study.record["metric"]:
                continue
            found = summaries(study, level, metric)
            for row in rows:
                if row["setting"] in found:
                    cell = with_spread(metric, found[row["setting"]])
                    row[f"{metric} per {level}"] = cell
    return rows if any(len(row) > 1 for row in rows) else []


def condition_rows(study: StudyFolder, level: str, metric: str) -> list[dict[str, Any]]:
    """Each setting under every condition of the test split, a column each."""
    rows: list[dict[str, Any]] = [{"setting": name} for name in study.names]
    for condition in study.conditions:
        found = summaries(study, level, metric, condition)
        for row in rows:
            summary = found.get(row["setting"])
            row[condition] = None if summary is None else with_spread(metric, summary)
    return rows


def cost_rows(study: StudyFolder) -> list[dict[str, Any]]:
    """Parameters, operations and tokens of each setting; operations also as a share of the first's.

    `on the frontier`: no other setting is as cheap and better, by the metric per sample.
    """
    unit, scale = cost_unit(study)
    points = pareto_points(study, study.levels[0])
    best = {points[i].label for i in frontier(points)}
    known = {point.label for point in points}
    rows = []
    base = study.settings[0].get("forward_gflop")
    for entry in study.settings:
        gflop = entry.get("forward_gflop")
        row = {
            "setting": entry["name"],
            "model": entry.get("model"),
            "parameters": f"{entry['num_parameters']:,}" if "num_parameters" in entry else None,
            unit: None if gflop is None else f"{scale * gflop:.2f}",
            "of the first": f"{gflop / base:.0%}" if gflop is not None and base else None,
            "tokens in": entry.get("tokens_in"),
            "tokens kept": entry.get("tokens_kept"),
        }
        if entry["name"] in known:
            row["on the frontier"] = "yes" if entry["name"] in best else "no"
        rows.append(row)
    return rows


def cost_unit(study: StudyFolder) -> tuple[str, float]:
    """GFLOP, or MFLOP where all settings are small, and how many make one GFLOP."""
    costs = [entry.get("forward_gflop") or 0.0 for entry in study.settings]
    return ("GFLOP", 1.0) if max(costs) >= 1 else ("MFLOP", 1e3)


def pareto_points(study: StudyFolder, level: str) -> list[Point]:
    """Settings by operations of a sample and the study's metric."""
    _, scale = cost_unit(study)
    found = summaries(study, level, study.record["metric"])
    return [
        Point(entry["name"], scale * entry["forward_gflop"], of.mean, of.over_seeds)
        for entry in study.settings
        if entry.get("forward_gflop") and (of := found.get(entry["name"])) is not None
    ]


def curve_bands(study: StudyFolder) -> dict[str, dict[str, Band]]:
    """By metric and setting, mean and deviation over all runs of the setting."""
    found: dict[str, dict[str, Band]] = {}
    for (setting, metric), curve in study.curves.items():
        runs = curve.values.reshape(len(curve.steps), -1)
        runs = runs[:, ~np.isnan(runs).all(axis=0)]
        spread = [deviation(row[~np.isnan(row)]) or 0.0 for row in runs]
        band = Band(curve.steps, np.nanmean(runs, axis=1), np.array(spread))
        found.setdefault(metric, {})[setting] = band
    return found


def calibration_rows(study: StudyFolder) -> list[dict[str, Any]]:
    """Expected calibration error of each setting with predictions: of each seed over all folds."""
    rows = []
    for name in study.names:
        parts = list(study.predictions(name))
        if not parts:
            continue
        by_seed = [_of_seed(parts, seed) for seed in study.record["seeds"]]
        pairs = [named_class(*found) for found in by_seed if found is not None]
        errors = np.array([calibration_error(*pair) for pair in pairs])
        confidence = np.array([pair[0].mean() for pair in pairs])
        top1 = np.array([pair[1].mean() for pair in pairs])
        rows.append(
            {
                "setting": name,
                "ECE": f"{100 * errors.mean():.1f}",
                "sd over seeds": spread_of("ece", deviation(errors)),
                "mean confidence": f"{confidence.mean():.1%}",
                "top1": f"{top1.mean():.1%}",
                "gap": change_of("top1", float(confidence.mean() - top1.mean())),
            }
        )
    return rows


def pooled_reliability(study: StudyFolder) -> dict[str, Reliability]:
    """By setting with predictions, of all its folds and seeds together."""
    found = {}
    for name in study.names:
        parts = list(study.predictions(name))
        if parts:
            probabilities = np.concatenate(
                [of.reshape(-1, of.shape[-1]) for of in (part["probabilities"] for part in parts)]
            )
            label = [np.tile(part["label"], len(part["seed"])) for part in parts]
            found[name] = reliability(probabilities, np.concatenate(label))
    return found


def pooled_confusion(study: StudyFolder, setting: str) -> np.ndarray | None:
    """Counts over folds and seeds, `[c, c]`; None without predictions."""
    total = None
    for part in study.predictions(setting):
        classes = part["probabilities"].shape[-1]
        for probabilities in part["probabilities"]:
            counts = confusion_matrix(part["label"], probabilities.argmax(axis=1), classes)
            total = counts if total is None else total + counts
    return total


def _of_seed(
    parts: Sequence[Mapping[str, np.ndarray]], seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities and labels of one seed over the folds that have it."""
    own = [part for part in parts if seed in part["seed"]]
    if not own:
        return None
    rows = [part["probabilities"][part["seed"].tolist().index(seed)] for part in own]
    return np.concatenate(rows).astype(np.float64), np.concatenate([p["label"] for p in own])
