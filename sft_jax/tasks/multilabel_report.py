"""Report of a multi-label classifier: scores, labels, precision against recall, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.metrics.calibration import NUM_BINS, binned
from sft_jax.metrics.multilabel import precision_recall
from sft_jax.tasks.base import Metric, Scored
from sft_jax.tasks.blocks import FigureBlock, Lines, ReportSection, TableBlock, TextBlock
from sft_jax.tasks.results import comparison_section, is_comparison, results_section

# Curves that can be told apart in one figure.
_MOST_CURVES = 10


def multilabel_report(
    scored: Mapping[str, Scored], task: Any, metrics: Mapping[str, Metric]
) -> Sequence[ReportSection]:
    """Sections for the splits of one run, or for one split of several runs.

    Args:
        scored: See `tasks.base.Task.report`.
        task: Multi-label task of the runs.
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
                ("macro_f1", "micro_f1", "loss"),
                lambda entry: task.scorer(entry.answers, np.asarray(entry.target)),
            )
        )
    else:
        for entry in evaluated.values():
            evaluation = entry.evaluation or {}
            table = TableBlock(_label_rows(evaluation), "By label")
            sections.append(results_section(evaluation, metrics, table))
    known = {name: entry for name, entry in scored.items() if entry.answers}
    if known and not is_comparison(scored):
        name, entry = next(iter(known.items()))
        sections.append(_curves(name, entry, task.label_names))
    if known:
        sections.append(_calibration(known, is_comparison(scored)))
    return sections


def _label_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    shares = ("AP", "AUC", "precision", "recall", "f1", "accuracy", "weighted_f1")
    return [
        {
            "label": row["name"],
            **{key: None if row[key] is None else f"{row[key]:.1%}" for key in shares},
            "threshold": f"{row['threshold']:.3g}",
            "known": f"{row['known']:g}",
            "positive": f"{row['positives']:g}",
        }
        for row in evaluation["per_output"]
    ]


def _curves(name: str, entry: Scored, label_names: Sequence[str]) -> ReportSection:
    """Precision against recall of the labels with most positives."""
    target, probabilities = np.asarray(entry.target), entry.answers["probabilities"]
    positives = np.nansum(target, axis=0)
    chosen = [i for i in np.argsort(-positives, kind="stable")[:_MOST_CURVES] if positives[i]]
    curves = {label_names[i]: precision_recall(probabilities[:, i], target[:, i]) for i in chosen}
    figure = Lines(
        name="precision_recall",
        curves=curves,
        x_label="recall",
        y_label="precision",
        alt=f"Precision against recall on {name}",
    )
    more = len(label_names) - len(chosen)
    caption = f"Precision against recall on {name}" + (
        f", of the {len(chosen)} labels with most positives." if more else "."
    )
    return ReportSection("Precision and recall", [FigureBlock([figure], caption)])


def _calibration(known: Mapping[str, Scored], compared: bool) -> ReportSection:
    key = "run" if compared else "split"
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    counts: dict[str, np.ndarray] = {}
    for name, entry in known.items():
        target = np.asarray(entry.target)
        is_known = ~np.isnan(target)
        probabilities = entry.answers["probabilities"][is_known].astype(np.float64)
        true = target[is_known]
        bins = binned(probabilities, true)
        rows.append(
            {
                key: name,
                "ECE": f"{100 * bins.error:.1f}",
                "mean probability": f"{probabilities.mean():.1%}",
                "positive": f"{true.mean():.1%}",
            }
        )
        if len(curves) < (_MOST_CURVES if compared else 1):
            curves[name], counts[name] = (bins.confidence, bins.accuracy), bins.count
    split = next(iter(known.values())).split
    figure = Lines(
        name="reliability",
        curves=curves,
        x_label="probability",
        y_label="share of positives",
        alt=f"Share of positives against probability on {split}",
        diagonal=True,
        counts=counts,
    )
    note = (
        f"Over all known entries. ECE: expected calibration error over {NUM_BINS} equal bins of "
        "probability, in percentage points."
    )
    caption = f"Reliability on {split}: below the dashed line, probabilities are too high."
    return ReportSection(
        "Calibration", [TableBlock(rows), TextBlock.of(note), FigureBlock([figure], caption)]
    )
