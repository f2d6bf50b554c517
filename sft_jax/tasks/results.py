"""Result tables that all tasks share: one split of a run, and several runs side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.metrics.bootstrap import estimates
from sft_jax.tasks.base import Metric, Scored, metric_named
from sft_jax.tasks.blocks import (
    FigureBlock,
    Intervals,
    ReportBlock,
    ReportSection,
    TableBlock,
    TextBlock,
)

Estimate = dict[str, float | None]
# How often each sample counts `[n]` -> the metrics that a task scores, by name.
Scorer = Callable[[np.ndarray], Mapping[str, float]]


def evaluation(
    scorer: Scorer,
    num_samples: int,
    *,
    baseline: tuple[str, Mapping[str, float]],
    per_output: Sequence[Mapping[str, Any]],
    split: str,
    step: int,
    groups: np.ndarray | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Content of `evaluation_<split>.json` of a task whose outputs are scored one by one.

    Args:
        scorer: Scorer of the answers.
        num_samples: Number of samples.
        baseline: What it predicts, and its metrics.
        per_output: Name and scores of each output.
        split: Name of the split.
        step: Optimizer steps that the model has taken.
        groups: Group of each sample, for the bootstrap to resample; None resamples samples.
        seed: Seed of the bootstrap.
        replicates: Number of bootstrap replicates.
    """
    names = tuple(scorer(np.ones(num_samples)))

    def statistic(times: np.ndarray) -> np.ndarray:
        return np.array(list(scorer(times).values()), np.float64)

    found = estimates(statistic, num_samples, groups=groups, seed=seed, replicates=replicates)
    description, metrics = baseline
    return {
        "split": split,
        "step": step,
        "num_samples": num_samples,
        "metrics": dict(zip(names, found, strict=True)),
        "resampled": "sample" if groups is None else "group",
        "group": None,
        "baseline": {"description": description, "metrics": plain(metrics)},
        "per_output": list(per_output),
    }


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, with None for undefined ones."""
    return {name: float(x) if np.isfinite(x) else None for name, x in values.items()}


def is_comparison(scored: Mapping[str, Scored]) -> bool:
    """Whether entries are several runs or settings on one split, not the splits of one run."""
    return len(scored) > len({entry.split for entry in scored.values()})


def metric_row(
    metric: Metric, estimate: Mapping[str, Any], n: int, level: str = "sample"
) -> dict[str, Any]:
    """Row of a table of results: value, interval and number of samples."""
    return {
        "metric": metric.name,
        "per": level,
        "value": metric.value(estimate["value"]),
        "95 % interval": metric.interval(estimate),
        "N": n,
    }


def baseline_rows(
    evaluation: Mapping[str, Any], metrics: Mapping[str, Metric]
) -> list[dict[str, Any]]:
    """Each metric with its interval, number of samples and baseline."""
    baseline = evaluation.get("baseline") or {}
    rows = []
    for name, estimate in evaluation["metrics"].items():
        metric = metric_named(metrics, name)
        row = metric_row(metric, estimate, evaluation["num_samples"])
        rows.append(row | {"baseline": metric.value(baseline.get("metrics", {}).get(name))})
    return rows


def bootstrap_note(evaluation: Mapping[str, Any]) -> str:
    """How intervals were made, and of which parameters."""
    return (
        f"Parameters of step {evaluation['step']}. Intervals: 95 %, percentile bootstrap over "
        f"{evaluation['resampled']}s; they do not cover the training seed."
    )


def results_section(
    evaluation: Mapping[str, Any], metrics: Mapping[str, Metric], *more: ReportBlock
) -> ReportSection:
    """Scores of one split of a run beside the baseline."""
    note = f"{bootstrap_note(evaluation)} Baseline: {evaluation['baseline']['description']}."
    blocks = [TableBlock(baseline_rows(evaluation, metrics)), TextBlock.of(note), *more]
    return ReportSection(f"Results on {evaluation['split']}", blocks)


def comparison_section(
    scored: Mapping[str, Scored],
    metrics: Mapping[str, Metric],
    main: Metric,
    shown: Sequence[str],
    scorer: Callable[[Scored], Scorer],
) -> ReportSection:
    """Scores of several evaluated runs on one split, and paired differences to the first.

    Args:
        scored: Runs by name.
        metrics: Metrics of the task.
        main: Metric that is compared.
        shown: Names of further metrics.
        scorer: Scorer of a run's predictions.
    """
    first_name, first = next(iter(scored.items()))
    changes = [
        None,
        *(paired_change(first, other, main.name, scorer) for other in list(scored.values())[1:]),
    ]
    rows = []
    for (name, entry), change in zip(scored.items(), changes, strict=True):
        evaluation = entry.evaluation or {}
        found, group = evaluation["metrics"], evaluation.get("group")
        row = {
            "run": name,
            "step": evaluation["step"],
            "N": evaluation["num_samples"],
            main.name: main.value(found[main.name]["value"]),
            "95 % interval": main.interval(found[main.name]),
        }
        if any(changes):
            row["difference"] = change and main.change(change["value"])
            row["its 95 % interval"] = change and main.change_interval(change)
        if group is not None:
            row[f"{main.name} per group"] = main.value(group[main.name]["value"])
        for other in shown:
            estimate = found.get(other, {"value": None})
            row[other] = metric_named(metrics, other).value(estimate["value"])
        rows.append(row)
    unit = ", in percentage points" if main.is_share else ""
    note = (
        f"Intervals: 95 %, percentile bootstrap over {(first.evaluation or {})['resampled']}s; "
        "they do not cover the training seed. Differences to the first run are paired, sample by "
        f"sample{unit}."
    )
    blocks: list[ReportBlock] = [TableBlock(rows), TextBlock.of(note)]
    unpaired = [name for name, change in zip(scored, changes, strict=True) if change is None][1:]
    if unpaired:
        text = (
            f"No paired difference for {', '.join(unpaired)}: predictions are missing, or their "
            f"ids, labels or groups are not those of {first_name}."
        )
        blocks.append(TextBlock.of(text))
    if main.is_share:
        figure = Intervals(
            name="runs",
            rows={n: (e.evaluation or {})["metrics"][main.name] for n, e in scored.items()},
            title=f"{main.title} per sample",
            alt=f"{main.title} of every run on {first.split}, with its interval",
        )
        blocks.append(FigureBlock([figure], f"{main.title} on {first.split}."))
    return ReportSection("Results", blocks)


def paired_change(
    first: Scored, other: Scored, name: str, scorer: Callable[[Scored], Scorer]
) -> Estimate | None:
    """A metric of `other` minus that of `first`, with an interval over the same bootstrap draws.

    None if they cannot be paired.
    """
    if not first.can_be_paired_with(other):
        return None
    before, after = scorer(first), scorer(other)

    def difference(times: np.ndarray) -> np.ndarray:
        return np.array([after(times)[name] - before(times)[name]])

    return estimates(difference, len(np.asarray(first.target)), seed=0, groups=first.groups)[0]
