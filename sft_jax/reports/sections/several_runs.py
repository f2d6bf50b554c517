"""The report of several runs side by side."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.metrics.bootstrap import estimates
from sft_jax.metrics.calibration import named_class, reliability
from sft_jax.reports.document import (
    Block,
    Commands,
    Document,
    Headline,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    slug,
)
from sft_jax.reports.figures import plots, result_plots
from sft_jax.reports.sections.run_scores import calibration_row, groups_of, kept_rows
from sft_jax.reports.seed_spread import by_setting, says_seed, spread_rows
from sft_jax.reports.tables import change_interval, change_of, figure_of, interval_of
from sft_jax.runs.evaluation_files import SPLIT_ORDER
from sft_jax.runs.run_folder import Run
from sft_jax.types import DataError


def runs_document(
    runs: Sequence[Run], costs: Sequence[Sequence[Mapping[str, Any]]], cost_note: str
) -> Document:
    """What there is to say of several runs; the others are compared with the first.

    Args:
        runs: evaluated, on a split that they share.
        costs: of each run, rows of models, its own first; empty where it is not known.
        cost_note: what these rows mean.

    Raises:
        DataError: no split was evaluated in all of them, or one is given twice.
    """
    named = _by_name(runs)
    split = _shared_split(runs)
    own = {name: rows[0] for name, rows in zip(named, costs, strict=True) if rows}
    sections = [
        _results_section(named, split),
        _spread_section(named, split),
        _cost_section(named, split, own, cost_note),
        _ablation_section(named, split),
        _confusion_section(named, split),
        _calibration_section(named, split),
        _kept_section(named, split),
        _curves_section(named),
        _commands_section(named, split),
    ]
    sources = list(dict.fromkeys(run.config.data.source for run in runs))
    return Document(
        kind="runs",
        title=f"{len(runs)} runs on {', '.join(sources)}",
        lead=Text.of(f"Judged on the {split} split. The first run is what others are compared to."),
        headlines=[
            Headline(
                name,
                figure_of("top1", _top1(run, split)["value"]) or "-",
                interval_of("top1", _top1(run, split)) or "",
            )
            for name, run in list(named.items())[:4]
        ],
        sections=[section for section in sections if section is not None],
    )


def _by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """By the name of the folder, and by its path where two have one name."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.workdir) for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"workdir: found {names}, expected each run once; give it once")
    return dict(zip(names, runs, strict=True))


def _shared_split(runs: Sequence[Run]) -> str:
    shared = [split for split in runs[0].splits if all(split in run.splits for run in runs)]
    if not shared:
        found = "; ".join(f"{run.workdir}: {', '.join(run.splits)}" for run in runs)
        raise DataError(
            f"runs: found evaluations of different splits ({found}), expected one that all have; "
            "run `python -m sft_jax.evaluate` on the others"
        )
    return min(shared, key=lambda name: (*SPLIT_ORDER, name).index(name))


def _top1(run: Run, split: str) -> Mapping[str, Any]:
    return run.evaluation(split)["metrics"]["top1"]


def paired_top1(first: Run, other: Run, split: str) -> dict[str, float | None] | None:
    """Top-1 of `other` less that of `first`, with its interval over the same draws of groups.

    None where predictions are missing, or not of the same samples.
    """
    pair = [found for run in (first, other) if (found := run.predictions.get(split)) is not None]
    if len(pair) < 2 or not np.array_equal(pair[0]["id"], pair[1]["id"]):
        return None
    before, after = (named_class(of["probabilities"], of["label"])[1] for of in pair)
    groups = groups_of(first.evaluation(split), pair[0])

    def difference(times: np.ndarray) -> np.ndarray:
        return np.array([times @ (after - before) / times.sum()])

    return estimates(difference, len(before), seed=0, groups=groups)[0]


def _results_section(named: Mapping[str, Run], split: str) -> Section:
    first, *others = named.values()
    changes = [None, *(paired_top1(first, run, split) for run in others)]
    rows, intervals = [], []
    for (name, run), change in zip(named.items(), changes, strict=True):
        evaluation = run.evaluation(split)
        top1 = _top1(run, split)
        row = {
            "run": name,
            "step": evaluation["step"],
            "N": evaluation["num_samples"],
            "top1": figure_of("top1", top1["value"]),
            "95 % interval": interval_of("top1", top1),
        }
        if any(changes):
            row["difference"] = change and change_of("top1", change["value"])
            row["its 95 % interval"] = change and change_interval("top1", change)
        if evaluation["group"] is not None:
            row["top1 per group"] = figure_of("top1", evaluation["group"]["top1"]["value"])
        for metric in ("macro_f1", "loss"):
            row[metric] = figure_of(metric, evaluation["metrics"][metric]["value"])
        rows.append(row)
        intervals.append(result_plots.Interval(name, top1["value"], top1["low"], top1["high"]))
    figure = result_plots.intervals(intervals, "Top-1 per sample")
    note = (
        f"Intervals: 95 %, percentile bootstrap over {first.evaluation(split)['resampled']}s; they "
        "do not cover the training seed. Differences to the first run are paired, sample by "
        "sample, in percentage points."
    )
    picture = Picture("runs", figure, f"Top-1 of every run on {split}, with its interval")
    return Section(
        "Results", [Table(rows), Text.of(note), Pictures([picture], f"Top-1 on {split}.")]
    )


def _spread_section(named: Mapping[str, Run], split: str) -> Section | None:
    """Over seeds, where folders are named after setting and seed."""
    folders = [run.workdir for run in named.values()]
    if not all(map(says_seed, folders)) or len(by_setting(folders)) == len(folders):
        return None
    note = "Runs whose folders differ in the last number alone are seeds of one setting."
    return Section("Spread over seeds", [Table(spread_rows(folders, split, "top1")), Text.of(note)])


def _cost_section(
    named: Mapping[str, Run],
    split: str,
    own: Mapping[str, Mapping[str, Any]],
    cost_note: str,
) -> Section | None:
    if not own:
        return None
    points = [
        result_plots.Point(name, row["forward GFLOP"], _top1(named[name], split)["value"])
        for name, row in own.items()
        if row["forward GFLOP"]
    ]
    blocks: list[Block] = [Table([{"run": name, **row} for name, row in own.items()])]
    blocks.append(Text.of(cost_note))
    if len(points) > 1:
        figure = result_plots.pareto(points, "top1 per sample", "GFLOP of a sample")
        picture = Picture("pareto", figure, "top1 per sample against GFLOP")
        caption = "The line joins the runs that no other one beats in both."
        blocks.append(Pictures([picture], caption))
    return Section("Accuracy against cost", blocks)


def _ablation_section(named: Mapping[str, Run], split: str) -> Section | None:
    rows = []
    for name, run in named.items():
        found = run.ablations.get(split)
        if found is None:
            continue
        row = {"run": name, "complete": figure_of("top1", _top1(run, split)["value"])}
        for modality, of in found["without"].items():
            change = of["difference"]["top1"]
            row[f"without {modality}"] = figure_of("top1", of["metrics"]["top1"]["value"])
            row[f"change without {modality}"] = change_of("top1", change["value"])
        rows.append(row)
    if not rows:
        return None
    note = "top1 of the trained model, with one modality masked out of every sample."
    return Section("Without a modality", [Table(rows), Text.of(note)])


def _confusion_section(named: Mapping[str, Run], split: str) -> Section:
    pictures = [
        Picture(
            f"confusion_{slug(name)}",
            plots.confusion_matrix(
                np.asarray(run.evaluation(split)["confusion"]), run.data["class_names"]
            ),
            f"Confusion matrix of {name}",
        )
        for name, run in named.items()
    ]
    caption = f"{', '.join(named)}: a row is what samples are, a column what they were called."
    return Section("Confusion", [Pictures(pictures, caption)])


def _calibration_section(named: Mapping[str, Run], split: str) -> Section | None:
    known = {name: run for name, run in named.items() if split in run.predictions}
    if not known:
        return None
    rows, bins = [], {}
    for name, run in known.items():
        predictions = run.predictions[split]
        row = calibration_row(run.evaluation(split), predictions)
        rows.append({"run": name} | {key: row[key] for key in row if key != "split"})
        bins[name] = reliability(predictions["probabilities"], predictions["label"])
    figure = result_plots.reliability_diagram(bins)
    picture = Picture("reliability", figure, f"Accuracy against confidence on {split}")
    caption = (
        "Below the broken line, a model is surer of itself than it is right. Bins of less than "
        f"{result_plots.LEAST_SHARE:.0%} of the samples are left out."
    )
    note = "ECE: expected calibration error, in percentage points; gap: mean confidence less top-1."
    return Section("Calibration", [Table(rows), Text.of(note), Pictures([picture], caption)])


def _kept_section(named: Mapping[str, Run], split: str) -> Section | None:
    rows = [
        {"run": name, **row}
        for name, run in named.items()
        if split in run.predictions
        for row in kept_rows(run.config.modalities, run.predictions[split])
    ]
    return Section("Tokens kept", [Table(rows)]) if rows else None


def _curves_section(named: Mapping[str, Run]) -> Section:
    pictures = []
    for kind in ("train", "valid"):
        for metric in ("loss", "top1"):
            curves = {}
            for name, run in named.items():
                records = [record for record in run.records if record["kind"] == kind]
                if records:
                    steps, values = (
                        np.array([r[key] for r in records]) for key in ("step", metric)
                    )
                    curves[name] = result_plots.Band(steps, values, np.zeros(len(steps)))
            if curves:
                title = f"{kind} {metric}"
                figure = result_plots.bands(curves, title, "optimizer step", metric == "top1")
                pictures.append(Picture(f"curve_{kind}_{metric}", figure, f"{title} of every run"))
    return Section("Learning curves", [Pictures(pictures, "Training and validation.")])


def _commands_section(named: Mapping[str, Run], split: str) -> Section:
    folders = [run.workdir for run in named.values()]
    commands = [run.data["command"] for run in named.values() if "command" in run.data]
    commands += [_command("evaluate", [folder], f" --split={split}") for folder in folders]
    commands.append(_command("report", folders))
    return Section("How to repeat it", [Commands("\n".join(commands))])


def _command(verb: str, folders: Sequence[Path], more: str = "") -> str:
    return f"python -m sft_jax.{verb} --workdir={shlex.quote(','.join(map(str, folders)))}{more}"
