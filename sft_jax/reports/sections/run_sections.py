"""Sections of a report on one or several runs, `{name: run}`, and those that a task describes."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sft_jax.config.modality import ModalitySpec
from sft_jax.reports.document import Block, Commands, Picture, Pictures, Section, slug
from sft_jax.reports.figures import result_figures, run_figures
from sft_jax.runs.run_folder import Run
from sft_jax.tasks.base import Scored, Task, metric_named
from sft_jax.tasks.blocks import (
    FigureBlock,
    Heatmap,
    Intervals,
    Plot,
    ReportSection,
    Scatter,
    TableBlock,
    TextBlock,
)

_NO_ESTIMATE: Mapping[str, Any] = {"value": None, "low": None, "high": None}


def scored_split(run: Run, split: str, task: Task) -> Scored:
    """Evaluation and predictions of a split of a run."""
    evaluation = run.evaluation(split)
    predictions = run.predictions.get(split)
    if predictions is None:
        return Scored(split=split, evaluation=evaluation, answers={}, target=None)
    return Scored(
        split=split,
        evaluation=evaluation,
        answers={name: predictions[name] for name in task.stored_answers},
        target=predictions[task.target_name],
        groups=predictions["group"] if evaluation["resampled"] == "group" else None,
        ids=predictions["id"],
    )


def ablation_section(runs: Mapping[str, Run], splits: Sequence[str], task: Task) -> Section | None:
    """Scores without each modality; the first table is also drawn."""
    rows: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    main = task.metrics[task.main_metric]
    for name, run in runs.items():
        for split in splits:
            found = run.ablations.get(split)
            if found is None:
                continue
            where = {"run": name} if len(runs) > 1 else {"split": split} if len(splits) > 1 else {}
            own = _ablation_rows(run.evaluation(split), found, task)
            rows += [{**where, **row} for row in own]
            if main.is_share and not pictures:
                pictures += _ablation_pictures(found, main.name, split)
    if not rows:
        return None
    note = (
        "The trained model, with one modality masked in every sample. Differences are to the "
        "complete input on the same samples, in percentage points for shares; intervals: 95 %, "
        "bootstrap."
    )
    blocks: list[Block] = [TableBlock(rows), TextBlock.of(note)]
    if pictures:
        blocks.append(Pictures(pictures, f"{pictures[0].alt}."))
    return Section("Without a modality", blocks)


def _ablation_pictures(ablation: Mapping[str, Any], metric: str, split: str) -> list[Picture]:
    changes = {
        f"without {modality}": found["difference"].get(metric, _NO_ESTIMATE)
        for modality, found in ablation["without"].items()
        if found["num_samples"]
    }
    known = {name: change for name, change in changes.items() if change["value"] is not None}
    if not known:
        return []
    title = f"Change of {metric}"
    alt = f"{title} without each modality on {split}"
    plot = Intervals(name="ablation", rows=known, title=title, alt=alt, difference=True)
    return [Picture("ablation", result_figures.intervals(plot), alt)]


def _ablation_rows(
    evaluation: Mapping[str, Any], ablation: Mapping[str, Any], task: Task
) -> list[dict[str, Any]]:
    """The complete input first, then the input without each modality."""
    names = list(dict.fromkeys(n for of in ablation["without"].values() for n in of["metrics"]))

    def cells(metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: metric_named(task.metrics, name).value(metrics.get(name, _NO_ESTIMATE)["value"])
            for name in names
        }

    rows = [{"input": "complete", "N": ablation["num_samples"], **cells(evaluation["metrics"])}]
    for modality, found in ablation["without"].items():
        row = {"input": f"without {modality}", "N": found["num_samples"], **cells(found["metrics"])}
        for name in (task.main_metric, "loss"):
            metric = metric_named(task.metrics, name)
            change = found["difference"].get(name, _NO_ESTIMATE)
            row[f"change of {name}"] = metric.change(change["value"])
            if name == task.main_metric:
                row["95 % interval"] = metric.change_interval(change)
        if found["left_out"]:
            row["left out"] = found["left_out"]
        rows.append(row)
    return rows


def kept_tokens_section(runs: Mapping[str, Run], split: str) -> Section | None:
    """How often each token was kept; of a single run also as figures, with one recording."""
    rows, pictures = [], []
    for name, run in runs.items():
        predictions = run.predictions.get(split)
        if predictions is None:
            continue
        for spec in run.config.modalities:
            indices = predictions.get(f"kept/{spec.name}/indices")
            if indices is None:  # the pool does not choose tokens
                continue
            counts = np.bincount(indices[indices >= 0], minlength=spec.num_tokens)
            share = counts / len(predictions["id"])
            row = _kept_row(spec, share)
            rows.append({"run": name, **row} if len(runs) > 1 else row)
            if len(runs) == 1:
                by_time = share.reshape(-1, math.prod(spec.grid[1:])).mean(axis=1)
                expected = spec.num_pooled / spec.num_tokens
                figure = result_figures.token_frequency(by_time, expected, spec.name)
                alt = f"Share of samples that keep each token of {spec.name}"
                pictures.append(Picture(f"tokens_{spec.name}", figure, alt))
    blocks: list[Block] = []
    if rows:
        blocks.append(TableBlock(rows, f"Tokens that pools choose on {split}"))
    if pictures:
        caption = f"How often each token is kept, over the samples of the {split} split."
        blocks.append(Pictures(pictures, caption))
    example = next(iter(runs.values())).example if len(runs) == 1 else None
    if example is not None:
        alt = "Tokens that the pool kept of one recording"
        picture = Picture("kept_tokens", run_figures.kept_tokens(example), alt)
        blocks.append(Pictures([picture], "One recording; the kept parts are shaded."))
    return Section("Tokens kept", blocks) if blocks else None


def _kept_row(spec: ModalitySpec, share: np.ndarray) -> dict[str, Any]:
    """Number of tokens of a modality, and how the choice is spread over them."""
    most = int(np.argmax(share))
    return {
        "modality": spec.name,
        "pool": spec.pool,
        "tokens": spec.num_tokens,
        "kept of a sample": f"{share.sum():.4g}",
        "ever kept": int((share > 0).sum()),
        "always kept": int((share == 1).sum()),
        "most often": f"token {most} ({share[most]:.0%})",
    }


def curves_section(runs: Mapping[str, Run], task: Task) -> Section | None:
    """Loss and main metric during training."""
    metrics = [metric_named(task.metrics, name) for name in ("loss", task.main_metric)]
    if len(runs) == 1:
        records = next(iter(runs.values())).records
        pictures = [
            Picture(
                f"curve_{metric.name}",
                run_figures.learning_curves(records, [metric]),
                f"{metric.title} against the optimizer step",
            )
            for metric in metrics
            if any(metric.name in record for record in records)
        ]
        validated = any(record["kind"] == "valid" for record in records)
        caption = (
            "Training and validation; the ring marks the best validation."
            if validated
            else "Training; there was no validation."
        )
        return Section("Learning curves", [Pictures(pictures, caption)]) if pictures else None
    curves: dict[str, dict[str, result_figures.Band]] = {}
    for kind in ("train", "valid"):
        for metric in metrics:
            for name, run in runs.items():
                points = [
                    (record["step"], record[metric.name])
                    for record in run.records
                    if record["kind"] == kind and metric.name in record
                ]
                if points:
                    steps, values = np.array(points, np.float64).T
                    band = result_figures.Band(steps, values, np.zeros(len(steps)))
                    curves.setdefault(f"{kind} {metric.name}", {})[name] = band
    return bands_section(curves, task, "run", "optimizer step", "Training and validation.")


def bands_section(
    curves: Mapping[str, Mapping[str, result_figures.Band]],
    task: Task,
    unit: str,
    x_label: str,
    caption: str,
) -> Section | None:
    """Training curves of several runs or settings (the `unit`), by `<kind> <metric>` and name."""
    if not curves:
        return None
    pictures = []
    for title, of in curves.items():
        is_share = metric_named(task.metrics, title.rpartition(" ")[2]).is_share
        figure = result_figures.bands(of, title, x_label, is_share)
        pictures.append(
            Picture(slug(f"curve {title}"), figure, f"{title} of every {unit} over training")
        )
    return Section("Learning curves", [Pictures(pictures, caption)])


def commands_section(runs: Mapping[str, Run], splits: Sequence[str]) -> Section:
    """The commands that repeat the runs and the report."""
    folders = [run.workdir for run in runs.values()]
    commands = [run.data["command"] for run in runs.values() if "command" in run.data]
    commands = commands or ["# train with the settings of config.json, then:"]
    commands += [
        _command("evaluate", [folder], f" --split={split}")
        for folder in folders
        for split in splits
    ]
    return Section(
        "How to repeat it", [Commands("\n".join([*commands, _command("report", folders)]))]
    )


def _command(verb: str, folders: Sequence[Path], more: str = "") -> str:
    return f"python -m sft_jax.{verb} --workdir={shlex.quote(','.join(map(str, folders)))}{more}"


def draw_section(section: ReportSection) -> Section:
    """A section that a task describes as data, with its figures drawn."""
    blocks: list[Block] = []
    for block in section.blocks:
        if isinstance(block, FigureBlock):
            pictures = [Picture(slug(plot.name), _draw(plot), plot.alt) for plot in block.figures]
            blocks.append(Pictures(pictures, block.caption))
        else:
            blocks.append(block)
    return Section(section.title, blocks)


def _draw(plot: Plot) -> Figure:
    if isinstance(plot, Heatmap):
        return run_figures.confusion_matrix(
            plot.values, plot.labels, x_label=plot.x_label, y_label=plot.y_label
        )
    if isinstance(plot, Intervals):
        return result_figures.intervals(plot)
    if isinstance(plot, Scatter):
        return result_figures.scatter(plot)
    return result_figures.lines(plot)
