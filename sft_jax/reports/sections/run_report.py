"""Reports of one run, and of several runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.reports.document import Block, Document, Headline, Picture, Pictures, Section
from sft_jax.reports.figures import result_figures
from sft_jax.reports.sections.run_sections import (
    ablation_section,
    commands_section,
    curves_section,
    draw_section,
    kept_tokens_section,
    scored_split,
)
from sft_jax.reports.seed_spread import has_seed, runs_by_setting, spread_rows
from sft_jax.runs.run_files import OUTPUT_NAMES
from sft_jax.runs.run_folder import Run
from sft_jax.tasks.base import Metric, Task
from sft_jax.tasks.blocks import Code, TableBlock, TextBlock
from sft_jax.types import DataError

# A table of splits has one column for each class up to this number of classes.
_MOST_CLASS_COLUMNS = 12
_MOST_HEADLINES = 4


def run_document(
    run: Run, task: Task, cost: Sequence[Mapping[str, Any]], cost_note: str
) -> Document:
    """The report of one run.

    Args:
        run: Evaluated run.
        task: Task of the run.
        cost: Rows of models, the run's first; empty if the cost is not known.
        cost_note: Explanation of these rows.
    """
    scored = {split: scored_split(run, split, task) for split in run.splits}
    runs = {run.name: run}
    sections = [
        *map(draw_section, task.report(scored)),
        ablation_section(runs, run.splits, task),
        kept_tokens_section(runs, next(iter(run.predictions), run.splits[0])),
        curves_section(runs, task),
        Section("Cost", [TableBlock(cost), TextBlock.of(cost_note)]) if cost else None,
        _model_section(run),
        commands_section(runs, run.splits),
    ]
    return Document(
        kind="run",
        title=f"{run.config.model.name} on {run.config.data.source}",
        lead=_lead(run),
        headlines=_headlines(run, task, cost),
        sections=[section for section in sections if section is not None],
    )


def runs_document(
    runs: Sequence[Run],
    task: Task,
    costs: Sequence[Sequence[Mapping[str, Any]]],
    cost_note: str,
) -> Document:
    """The report of several runs; the others are compared with the first.

    Args:
        runs: Runs that were evaluated on a common split.
        task: Task of the runs.
        costs: For each run, rows of models, its own first; empty if the cost is not known.
        cost_note: Explanation of these rows.

    Raises:
        DataError: No split was evaluated in all runs, a run is given twice, or runs differ in
            their classes or number of samples.
    """
    named = _by_name(runs)
    split = _common_split(runs)
    _check_comparable(runs, split)
    own_costs = {name: rows[0] for name, rows in zip(named, costs, strict=True) if rows}
    scored = {name: scored_split(run, split, task) for name, run in named.items()}
    main = task.metrics[task.main_metric]
    sections = [
        *map(draw_section, task.report(scored)),
        _spread_section(named, split, task),
        _cost_section(named, split, main, own_costs, cost_note),
        ablation_section(named, [split], task),
        kept_tokens_section(named, split),
        curves_section(named, task),
        commands_section(named, [split]),
    ]
    sources = list(dict.fromkeys(run.config.data.source for run in runs))
    return Document(
        kind="runs",
        title=f"{len(runs)} runs on {', '.join(sources)}",
        lead=TextBlock.of(
            f"Evaluated on the {split} split. The other runs are compared with the first."
            + _fingerprint_note(named)
        ),
        headlines=[
            _estimate_headline(name, main, run.evaluation(split)["metrics"][main.name])
            for name, run in list(named.items())[:_MOST_HEADLINES]
        ],
        sections=[section for section in sections if section is not None],
    )


def _lead(run: Run) -> TextBlock:
    shown = run.evaluations[0]
    group = shown.get("group")
    in_groups = f" in {group['num_groups']} groups" if group else ""
    return TextBlock.of(
        "Run ",
        Code(run.name),
        f", trained to step {run.records[-1]['step']} and evaluated on {shown['num_samples']} "
        f"samples{in_groups} of the {shown['split']} split, at step {shown['step']}.",
    )


def _estimate_headline(label: str, metric: Metric, estimate: Mapping[str, Any]) -> Headline:
    return Headline(label, metric.value(estimate["value"]) or "-", metric.interval(estimate) or "")


def _headlines(run: Run, task: Task, cost: Sequence[Mapping[str, Any]]) -> list[Headline]:
    shown = run.evaluations[0]
    main = task.metrics[task.main_metric]
    headlines = [_estimate_headline(f"{main.title} per sample", main, shown["metrics"][main.name])]
    if group := shown.get("group"):
        headlines.append(_estimate_headline(f"{main.title} per group", main, group[main.name]))
    if majority := shown.get("majority"):
        value = main.value(majority.get(main.name)) or "-"
        headlines.append(Headline("Majority class", value, majority["class"]))
    if "num_parameters" in run.data:
        headlines.append(Headline("Parameters", f"{run.data['num_parameters']:,}"))
    if cost:
        note = ""
        if len(cost) > 1 and cost[0]["forward GFLOP"]:
            ratio = cost[1]["forward GFLOP"] / cost[0]["forward GFLOP"]
            note = f"{cost[1]['model']}: {ratio:.1f} times"
        headlines.append(Headline("GFLOP a sample", f"{cost[0]['forward GFLOP']:.4g}", note))
    return headlines


def _model_section(run: Run) -> Section:
    config, data = run.config, run.data
    model, train, optimizer = config.model, config.train, config.optimizer
    settings = {
        "model": f"{model.name}, preset {model.preset}, {model.dtype}",
        "width, heads": f"{model.embed_dim}, {model.num_heads}",
        "layers before, after fusion": f"{model.num_pre_layers}, {model.num_post_layers}",
        "parameters": f"{data['num_parameters']:,}" if "num_parameters" in data else None,
        "trained": f"{train.duration.value:g} {train.duration.unit} (to step "
        f"{run.records[-1]['step']}), batch {train.batch_size}, seed {train.seed}",
        "optimizer": f"AdamW, learning rate {optimizer.learning_rate:g} "
        f"({optimizer.schedule}), weight decay {optimizer.weight_decay:g}",
    }
    rows = [{"setting": key, "value": value} for key, value in settings.items() if value]
    return Section(
        "Model and data",
        [
            TableBlock(rows),
            TextBlock.of("Every other setting is in ", Code("config.json"), "."),
            TableBlock(_modality_rows(run), "Modalities"),
            TableBlock(_split_rows(data), "Splits"),
        ],
    )


def _modality_rows(run: Run) -> list[dict[str, Any]]:
    """Size of each modality, and of what its pool passes on."""
    specs = {spec.name: spec for spec in run.config.modalities}
    rows = []
    for entry in run.data["modalities"]:
        row = {
            "modality": entry["name"],
            "length": entry["length"],
            "features": entry["feature_dim"],
        }
        spec = specs.get(entry["name"])
        if spec is not None:
            row |= {"tokens": spec.num_tokens, "pool": spec.pool, "kept": spec.num_pooled}
        rows.append(row)
    return rows


def _split_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    by_class = data.get("counts", {})
    # Runs of earlier versions have the counts of classes alone.
    sizes = data.get("num_records") or {split: sum(counts) for split, counts in by_class.items()}
    for split, size in sizes.items():
        row = {"split": split, "samples": size, "groups": data.get("groups", {}).get(split)}
        counts = by_class.get(split, ())
        if 0 < len(counts) <= _MOST_CLASS_COLUMNS:
            row |= dict(zip(data["class_names"], counts, strict=True))
        elif counts:
            row |= {"classes": len(counts), "smallest": min(counts), "largest": max(counts)}
        rows.append(row)
    return rows


def _by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the name of their folder, or by their path if names repeat."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.workdir) for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"workdir: found {names}, expected each run once; give it once")
    return dict(zip(names, runs, strict=True))


def _common_split(runs: Sequence[Run]) -> str:
    common = [split for split in runs[0].splits if all(split in run.splits for run in runs)]
    if not common:
        found = "; ".join(f"{run.workdir}: {', '.join(run.splits)}" for run in runs)
        raise DataError(
            f"runs: found evaluations of different splits ({found}), expected one that all have; "
            "run `python -m sft_jax.evaluate` on the others"
        )
    return common[0]


def _check_comparable(runs: Sequence[Run], split: str):
    """Raises `DataError` unless all runs have the same task, outputs and number of samples."""
    first, *others = runs
    outputs = _outputs(first)
    num_samples = first.evaluation(split)["num_samples"]
    for run in others:
        if _outputs(run) != outputs:
            raise DataError(
                f"{run.workdir}: found {_outputs(run)}, expected {outputs}, as in "
                f"{first.workdir}; report on these runs one by one"
            )
        if (found := run.evaluation(split)["num_samples"]) != num_samples:
            raise DataError(
                f"{run.workdir}: found {found} samples of the {split} split, expected "
                f"{num_samples}, as in {first.workdir}; report on these runs one by one"
            )


def _outputs(run: Run) -> str:
    """What a run predicts, for an error message."""
    found = ((key.replace("_", " "), run.data.get(key)) for key in OUTPUT_NAMES)
    return "; ".join(f"{key} {', '.join(names)}" for key, names in found if names)


def _fingerprint_note(runs: Mapping[str, Run]) -> str:
    """Sentence that names the runs on other data than the first; empty if there are none."""
    (first_name, first), *others = runs.items()
    names = [
        name for name, run in others if run.data.get("fingerprint") != first.data.get("fingerprint")
    ]
    if not names:
        return ""
    return (
        f" The fingerprint of the data (files, options and splits) is not that of {first_name} for "
        f"{', '.join(names)}."
    )


def _spread_section(runs: Mapping[str, Run], split: str, task: Task) -> Section | None:
    """Spread over seeds, if folders are named after setting and seed."""
    folders = [run.workdir for run in runs.values()]
    if not all(map(has_seed, folders)) or len(runs_by_setting(folders)) == len(folders):
        return None
    note = "Runs whose folders differ only in the last number are seeds of one setting."
    try:
        table = TableBlock(spread_rows(folders, split, task.main_metric))
        blocks: list[Block] = [table, TextBlock.of(note)]
    except DataError as difference:
        blocks = [TextBlock.of(f"Not given: {difference}.")]
    return Section("Spread over seeds", blocks)


def _cost_section(
    runs: Mapping[str, Run],
    split: str,
    main: Metric,
    costs: Mapping[str, Mapping[str, Any]],
    cost_note: str,
) -> Section | None:
    if not costs:
        return None
    rows = [{"run": name, **row} for name, row in costs.items()]
    blocks: list[Block] = [TableBlock(rows), TextBlock.of(cost_note)]
    points = [
        result_figures.Point(
            name, row["forward GFLOP"], runs[name].evaluation(split)["metrics"][main.name]["value"]
        )
        for name, row in costs.items()
        if row["forward GFLOP"]
    ]
    if len(points) > 1 and main.is_share:
        title = f"{main.name} per sample"
        figure = result_figures.pareto(points, title, "GFLOP of a sample")
        picture = Picture("pareto", figure, f"{title} against GFLOP")
        caption = "The line joins the runs that no other run beats in both."
        blocks.append(Pictures([picture], caption))
    return Section("Accuracy against cost", blocks)
