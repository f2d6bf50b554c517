"""Report of a classifier: scores, confusion and calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.metrics.bootstrap import estimates
from sft_jax.metrics.calibration import (
    NUM_BINS,
    calibration_error,
    confidence_and_hits,
    reliability,
)
from sft_jax.metrics.classification import confusion_matrix
from sft_jax.tasks.base import Scored, metric_named
from sft_jax.tasks.blocks import (
    Code,
    FigureBlock,
    Heatmap,
    Lines,
    ReportBlock,
    ReportSection,
    TableBlock,
    TextBlock,
)
from sft_jax.tasks.classification_metrics import MAIN_METRIC, METRICS
from sft_jax.tasks.results import (
    Scorer,
    bootstrap_note,
    comparison_section,
    is_comparison,
    metric_row,
)

_TOP1 = METRICS[MAIN_METRIC]
# Curves that can be told apart in one figure.
_MOST_CURVES = 12


def classification_report(
    scored: Mapping[str, Scored], class_names: Sequence[str]
) -> Sequence[ReportSection]:
    """Results, confusion and calibration.

    Args:
        scored: See `tasks.base.Task.report`.
        class_names: Name of each class.
    """
    evaluated = {name: entry for name, entry in scored.items() if entry.evaluation is not None}
    results: list[ReportSection] = []
    if evaluated and is_comparison(evaluated):
        results.append(
            comparison_section(evaluated, METRICS, _TOP1, ("macro_f1", "loss"), _top1_scorer)
        )
    else:
        results += [_results(entry.evaluation or {}) for entry in evaluated.values()]
    others = (_confusion(scored, class_names), _calibration(scored))
    return [*results, *(section for section in others if section is not None)]


def metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric with its 95 % interval, number of samples and majority baseline.

    Metrics of sentiment come last, with the number of samples that each leaves out.
    """
    majority = evaluation.get("majority") or {}
    rows = []
    for name, estimate in evaluation["metrics"].items():
        baseline = _show(name, majority.get(name)) if name != "class" else None
        if name == MAIN_METRIC and baseline is not None:
            baseline += f" ({majority['class']})"
        row = metric_row(metric_named(METRICS, name), estimate, evaluation["num_samples"])
        rows.append(row | {"majority class": baseline})
    group = evaluation.get("group")
    if group is not None:
        rows.append(metric_row(_TOP1, group[MAIN_METRIC], group["num_groups"], "group"))
    for name, estimate in (evaluation.get("sentiment") or {}).items():
        row = metric_row(metric_named(METRICS, name), estimate, estimate["num_samples"])
        row["majority class"] = _show(name, estimate["majority"])
        rows.append(row | {"left out": estimate["left_out"]})
    return rows


def _show(name: str, value: float | None) -> str | None:
    return metric_named(METRICS, name).value(value)


def _results(evaluation: Mapping[str, Any]) -> ReportSection:
    """Scores of one split of a run."""
    intervals = bootstrap_note(evaluation)
    if evaluation.get("group") is not None:
        intervals += (
            " Samples of a group were recorded together and are not independent. At group level "
            "they vote by their mean probability."
        )
    blocks: list[ReportBlock] = [TableBlock(metric_rows(evaluation)), TextBlock.of(intervals)]
    if absent := evaluation.get("absent_classes"):
        text = f"Without a sample, and left out of the means: {', '.join(absent)}."
        blocks.append(TextBlock.of(text))
    if "ranked_by" in evaluation:
        text = f"mAP, mAUC and d_prime rank samples by {evaluation['ranked_by']}."
        blocks.append(TextBlock.of(text))
    if evaluation.get("sentiment"):
        blocks.append(
            TextBlock.of(
                *(Code("mae"), " to ", Code("f1_nonneg")),
                " score the expected value of the classes, ",
                *(Code("acc2"), " and ", Code("f1")),
                " the most probable class. Their baseline always predicts the most frequent class "
                "or sign of the training split. Every F1 of sentiment is weighted by how often "
                "each answer was predicted.",
            )
        )
    by_class = [
        {
            "class": row["class"],
            **{
                key: f"{row[key]:.1%}" if row["support"] else None
                for key in ("precision", "recall", "f1")
            },
            "support": row["support"],
        }
        for row in evaluation.get("per_class", ())
    ]
    if by_class:
        blocks.append(TableBlock(by_class, "By class"))
    return ReportSection(f"Results on {evaluation['split']}", blocks)


def _top1_scorer(entry: Scored) -> Scorer:
    hits = confidence_and_hits(*_answers(entry))[1]
    return lambda times: {MAIN_METRIC: times @ hits / times.sum()}


def _answers(entry: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[n, c]` in float64 and true classes `[n]`."""
    return entry.answers["probabilities"].astype(np.float64), np.asarray(entry.target)


def _confusion(scored: Mapping[str, Scored], class_names: Sequence[str]) -> ReportSection | None:
    compared = is_comparison(scored) or any(e.seeds is not None for e in scored.values())
    heatmaps = []
    # Of the splits of one run, only the first is drawn.
    for name, entry in list(scored.items())[: None if compared else 1]:
        counts = _confusion_counts(entry) if entry.highlighted else None
        if counts is not None:
            heatmaps.append(
                Heatmap(
                    name=f"confusion_{name}" if compared else "confusion",
                    values=counts,
                    labels=class_names,
                    x_label="predicted class",
                    y_label="true class",
                    alt=f"Confusion matrix of {name}"
                    if compared
                    else f"Confusion matrix on {name}",
                )
            )
    if not heatmaps:
        return None
    shown = " and ".join(plot.alt.removeprefix("Confusion matrix ") for plot in heatmaps)
    caption = f"Samples {shown}: rows are true classes, columns predicted ones."
    if any(entry.seeds is not None for entry in scored.values()):
        caption += " All folds are pooled; every sample counts once for each seed."
    return ReportSection("Confusion", [FigureBlock(heatmaps, caption)])


def _confusion_counts(entry: Scored) -> np.ndarray | None:
    evaluation = entry.evaluation or {}
    if "confusion" in evaluation:
        return np.asarray(evaluation["confusion"])
    if not entry.answers:
        return None
    probabilities, target = _answers(entry)
    return confusion_matrix(target, probabilities.argmax(axis=1), probabilities.shape[1])


def _calibration(scored: Mapping[str, Scored]) -> ReportSection | None:
    """Calibration of every entry with predictions; of one run's splits, only the first is drawn."""
    known = {name: entry for name, entry in scored.items() if entry.answers}
    if not known:
        return None
    pooled = any(entry.seeds is not None for entry in known.values())
    compared = is_comparison(scored) or pooled
    key = "setting" if pooled else "run" if compared else "split"
    rows = [{key: name, **_calibration_row(entry)} for name, entry in known.items()]
    drawn = {
        name: reliability(*_answers(known[name]))
        for name in list(known)[: _MOST_CURVES if compared else 1]
    }
    split = next(iter(known.values())).split
    figure = Lines(
        name="reliability",
        curves={name: (bins.confidence, bins.accuracy) for name, bins in drawn.items()},
        x_label="confidence",
        y_label="accuracy",
        alt=f"Accuracy against confidence on {split}",
        diagonal=True,
        counts={name: bins.count for name, bins in drawn.items()},
    )
    note = (
        f"ECE: expected calibration error over {NUM_BINS} equal bins of confidence, in percentage "
        f"points; gap: mean confidence minus {MAIN_METRIC}."
    )
    if pooled:
        note += " Each seed is scored over the samples of all folds."
    else:
        note += (
            " Brier: mean squared distance between probabilities and one-hot labels, between 0 "
            "and 2."
        )
    caption = (
        f"Reliability on {split}: below the dashed line, a model is more confident than accurate."
    )
    if len(drawn) > 1:
        caption += " Bins with less than 1% of the samples are left out."
    return ReportSection(
        "Calibration", [TableBlock(rows), TextBlock.of(note), FigureBlock([figure], caption)]
    )


def _calibration_row(entry: Scored) -> dict[str, Any]:
    """Calibration of a run with its interval, or of pooled runs with their spread over seeds."""
    probabilities, target = _answers(entry)
    confidence, correct = confidence_and_hits(probabilities, target)
    if entry.seeds is not None:
        errors = []
        means = []
        for seed in np.unique(entry.seeds):
            chosen = entry.seeds == seed
            errors.append(calibration_error(confidence[chosen], correct[chosen]))
            means.append((confidence[chosen].mean(), correct[chosen].mean()))
        mean_confidence, accuracy = np.mean(means, axis=0)
        row = {
            "ECE": f"{100 * np.mean(errors):.1f}",
            "sd over seeds": f"{100 * np.std(errors, ddof=1):.1f}" if len(errors) > 1 else None,
        }
        return row | _confidence_cells(mean_confidence, accuracy)
    squared = ((probabilities - np.eye(probabilities.shape[1])[target]) ** 2).sum(axis=1)

    def scores(times: np.ndarray) -> np.ndarray:
        brier = times @ squared / times.sum()
        return np.array([calibration_error(confidence, correct, times), brier])

    error, brier = estimates(scores, len(target), seed=0, groups=entry.groups)
    ends = [_TOP1.spread(error[end]) for end in ("low", "high")]
    row = {
        "ECE": _TOP1.spread(error["value"]),
        "95 % interval": None if None in ends else " to ".join(map(str, ends)),
    }
    row |= _confidence_cells(confidence.mean(), correct.mean())
    return row | {"Brier": f"{brier['value']:.4f}"}


def _confidence_cells(confidence: float, accuracy: float) -> dict[str, str | None]:
    return {
        "mean confidence": f"{confidence:.1%}",
        MAIN_METRIC: f"{accuracy:.1%}",
        "gap": _TOP1.change(float(confidence - accuracy)),
    }
