"""Scores and costs of a study as rows of tables and points of figures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_jax.reports.figures.result_figures import Band, Point, frontier
from sft_jax.reports.text_tables import format_table
from sft_jax.runs.study_folder import StudyFolder, Summary, deviation, summarise
from sft_jax.tasks.base import Metric, metric_named


@dataclasses.dataclass(frozen=True)
class StudyTables:
    """Tables of a study.

    Attributes:
        study: The study.
        metrics: Metrics of its task by name.
    """

    study: StudyFolder
    metrics: Mapping[str, Metric]

    @property
    def main(self) -> Metric:
        """Metric that settings are compared by."""
        return metric_named(self.metrics, self.study.metric)

    def best_setting(self) -> str:
        """Setting with the best mean of the main metric per sample."""
        found = self.study.summaries(self.study.levels[0], self.main.name)
        sign = 1 if self.main.higher_is_better else -1
        return max(found, key=lambda name: sign * found[name].mean)

    def overview(self) -> list[dict[str, Any]]:
        """Main metric of each setting at every level, beside its cost."""
        found = {level: self.study.summaries(level, self.main.name) for level in self.study.levels}
        rows = []
        for entry in self.study.settings:
            row = {"setting": entry["name"]}
            for level, summaries in found.items():
                summary = summaries.get(entry["name"])
                row[f"{self.main.name} per {level}"] = mean_and_spread(self.main, summary)
            rows.append(row | self._operations(entry) | _tokens(entry))
        return rows

    def settings(self, level: str, split: str = "test") -> list[dict[str, Any]]:
        """Main metric of each setting with its spread, and the difference to the first setting.

        Differences are paired by fold and seed, so that the difficulty of a fold and the luck of a
        seed cancel. Settings that were tested on other samples have none (see `unpaired_note`).
        """
        metric, rows = self.main, []
        first: np.ndarray | None = None
        for name, summary in self.study.summaries(level, metric.name, split=split).items():
            values = self.study.scores_of(name, level, metric.name, split=split)
            row = {
                "setting": name,
                "runs": summary.runs,
                metric.name: metric.value(summary.mean),
                "sd over seeds": metric.spread(summary.over_seeds),
                "sd over folds": metric.spread(summary.over_folds),
            }
            if first is None:
                first = values
            elif name not in self.study.unpaired_settings and not np.isnan(values - first).all():
                paired = values - first
                change = summarise(paired)
                better = (paired > 0 if metric.higher_is_better else paired < 0).sum()
                row |= {
                    "difference": metric.change(change.mean),
                    "its sd over seeds": metric.spread(change.over_seeds),
                    "its sd over folds": metric.spread(change.over_folds),
                    "better in": f"{better} of {change.runs}",
                }
            rows.append(row)
        return rows

    def unpaired_note(self) -> str:
        """Sentence that names the settings tested on other samples; empty if there are none."""
        if not self.study.unpaired_settings:
            return ""
        return (
            f"No paired difference for {', '.join(self.study.unpaired_settings)}: the ids or "
            f"labels of the test samples are not those of {self.study.names[0]}."
        )

    def scores_text(self) -> str:
        """Tables of `settings` at every level, for a terminal."""
        parts = [
            f"{self.main.name} per {level}:\n\n{format_table(self.settings(level))}\n"
            for level in self.study.levels
        ]
        return "\n".join([*parts, *filter(None, [self.unpaired_note()])])

    def other_metrics(self) -> list[dict[str, Any]]:
        """Every other metric of each setting at every level; empty if there is none."""
        columns = {
            f"{name} per {level}": (metric_named(self.metrics, name), level)
            for level in self.study.levels
            for name in self.study.metrics(level)
            if name != self.main.name
        }
        rows: list[dict[str, Any]] = [{"setting": name} for name in self.study.names]
        for column, (metric, level) in columns.items():
            found = self.study.summaries(level, metric.name)
            for row in rows:
                if row["setting"] in found:
                    row[column] = mean_and_spread(metric, found[row["setting"]])
        return rows if columns else []

    def conditions(self, level: str) -> list[dict[str, Any]]:
        """Main metric of each setting under every condition of the test split."""
        found = {
            condition: self.study.summaries(level, self.main.name, condition)
            for condition in self.study.conditions
        }
        return [
            {"setting": name}
            | {
                condition: mean_and_spread(self.main, summaries.get(name))
                for condition, summaries in found.items()
            }
            for name in self.study.names
        ]

    def costs(self) -> list[dict[str, Any]]:
        """Parameters, operations and tokens of each setting.

        `on the frontier`: No other setting is as cheap and better, by the main metric per sample.
        """
        points = self.cost_points(self.study.levels[0])
        best = {points[i].label for i in frontier(points)}
        known = {point.label for point in points}
        rows = []
        base = self.study.settings[0].get("forward_gflop")
        for entry in self.study.settings:
            gflop = entry.get("forward_gflop")
            row = {
                "setting": entry["name"],
                "model": entry.get("model"),
                "parameters": f"{entry['num_parameters']:,}" if "num_parameters" in entry else None,
                **self._operations(entry),
                "of the first": f"{gflop / base:.0%}" if gflop is not None and base else None,
                **_tokens(entry),
            }
            if entry["name"] in known:
                row["on the frontier"] = "yes" if entry["name"] in best else "no"
            rows.append(row)
        return rows

    def _operations(self, entry: Mapping[str, Any]) -> dict[str, str | None]:
        unit, scale = self.cost_unit()
        gflop = entry.get("forward_gflop")
        return {unit: None if gflop is None else f"{scale * gflop:.2f}"}

    def cost_unit(self) -> tuple[str, float]:
        """Unit of costs, GFLOP or MFLOP if all settings are small, and its number in a GFLOP."""
        costs = [entry.get("forward_gflop") or 0.0 for entry in self.study.settings]
        return ("GFLOP", 1.0) if max(costs) >= 1 else ("MFLOP", 1e3)

    def cost_points(self, level: str) -> list[Point]:
        """Settings by their operations per sample and main metric."""
        _, scale = self.cost_unit()
        found = self.study.summaries(level, self.main.name)
        return [
            Point(entry["name"], scale * entry["forward_gflop"], of.mean, of.over_seeds)
            for entry in self.study.settings
            if entry.get("forward_gflop") and (of := found.get(entry["name"])) is not None
        ]

    def curves(self) -> dict[str, dict[str, Band]]:
        """Mean and deviation over all runs of a setting, by metric and setting."""
        found: dict[str, dict[str, Band]] = {}
        for (setting, metric), curve in self.study.curves.items():
            runs = curve.values.reshape(len(curve.steps), -1)
            runs = runs[:, ~np.isnan(runs).all(axis=0)]
            spread = [deviation(row[~np.isnan(row)]) or 0.0 for row in runs]
            band = Band(curve.steps, np.nanmean(runs, axis=1), np.array(spread))
            found.setdefault(metric, {})[setting] = band
        return found


def _tokens(entry: Mapping[str, Any]) -> dict[str, int | None]:
    return {"tokens in": entry.get("tokens_in"), "tokens kept": entry.get("tokens_kept")}


def mean_and_spread(metric: Metric, summary: Summary | None) -> str | None:
    """`mean ± deviation over seeds`, or only the mean; None without a summary."""
    if summary is None:
        return None
    mean, spread = metric.value(summary.mean), metric.spread(summary.over_seeds)
    return mean if spread is None else f"{mean} \u00b1 {spread}"
