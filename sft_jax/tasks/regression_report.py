"""Report of a regression: scores, and predicted against true numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.tasks.base import Metric, Scored
from sft_jax.tasks.blocks import FigureBlock, ReportBlock, ReportSection, Scatter, TableBlock
from sft_jax.tasks.results import comparison_section, is_comparison, results_section

# Numbers that are drawn, one figure each.
_MOST_FIGURES = 6


def regression_report(
    scored: Mapping[str, Scored], task: Any, metrics: Mapping[str, Metric]
) -> Sequence[ReportSection]:
    """Sections for the splits of one run, or for one split of several runs.

    Args:
        scored: See `tasks.base.Task.report`.
        task: Regression task of the runs.
        metrics: Its metrics.
    """
    evaluated = {name: entry for name, entry in scored.items() if entry.evaluation is not None}
    sections = []
    if evaluated and is_comparison(evaluated):
        sections.append(
            comparison_section(
                evaluated,
                metrics,
                metrics[task.main_metric],
                ("rmse", "r2", "pearson", "ccc"),
                lambda entry: task.scorer(entry.answers, np.asarray(entry.target)),
            )
        )
    else:
        for entry in evaluated.values():
            evaluation = entry.evaluation or {}
            more: list[ReportBlock] = []
            if len(task.value_names) > 1:
                more = [TableBlock(_value_rows(evaluation, metrics), "By number")]
            sections.append(results_section(evaluation, metrics, *more))
    known = {name: entry for name, entry in scored.items() if entry.answers}
    compared = is_comparison(scored)
    figures = []
    for name, entry in list(known.items())[: None if compared else 1]:
        if entry.highlighted:
            figures += _scatters(name if compared else "", entry, task.value_names)
    if figures:
        split = next(iter(known.values())).split
        caption = f"Predicted against true numbers on {split}, and their differences."
        sections.append(ReportSection("Predictions", [FigureBlock(figures, caption)]))
    return sections


def _value_rows(
    evaluation: Mapping[str, Any], metrics: Mapping[str, Metric]
) -> list[dict[str, Any]]:
    shown = ("mae", "rmse", "r2", "pearson", "spearman", "ccc")
    return [
        {
            "number": row["name"],
            **{name: metrics[name].value(row[name]) for name in shown},
            "known": f"{row['known']:g}",
        }
        for row in evaluation["per_output"]
    ]


def _scatters(run: str, entry: Scored, names: Sequence[str]) -> list[Scatter]:
    value, target = entry.answers["value"], np.asarray(entry.target)
    figures = []
    for i, name in enumerate(names[:_MOST_FIGURES]):
        known = ~np.isnan(target[:, i])
        of = f" of {run}" if run else ""
        figures.append(
            Scatter(
                name=f"predictions_{run}_{i}" if run else f"predictions_{i}",
                x=target[known, i],
                y=value[known, i],
                x_label=f"true {name}",
                y_label=f"predicted {name}",
                alt=f"Predicted against true {name}{of} on {entry.split}",
            )
        )
    return figures
