"""Report of a study."""

import shlex

import numpy as np

from sft_jax.reports.document import (
    Block,
    Commands,
    Document,
    Headline,
    Picture,
    Pictures,
    Section,
)
from sft_jax.reports.figures import result_figures
from sft_jax.reports.sections.run_sections import bands_section, draw_section
from sft_jax.reports.sections.study_tables import StudyTables, mean_and_spread
from sft_jax.runs.study_folder import StudyFolder
from sft_jax.tasks.base import Scored, Task
from sft_jax.tasks.blocks import Code, TableBlock, TextBlock

# Curves that can be told apart in one figure.
_MOST_CURVES = 12


def study_document(study: StudyFolder, task: Task) -> Document:
    """The report of a study, as far as it has run."""
    tables = StudyTables(study, task.metrics)
    sections = [
        _validation_section(tables),
        _results_section(tables),
        _cost_section(tables),
        _conditions_section(tables),
        *map(draw_section, task.report(_scored_settings(tables, task))),
        _curves_section(tables, task),
        _protocol_section(study),
    ]
    return Document(
        kind="study",
        title=study.record["title"],
        lead=TextBlock.of(study.record["protocol"]),
        headlines=_headlines(tables),
        sections=[section for section in sections if section is not None],
    )


def _scored_settings(tables: StudyTables, task: Task) -> dict[str, Scored]:
    """Stored predictions of each setting, with its folds and seeds pooled."""
    study, scored = tables.study, {}
    highlighted = (study.names[0], tables.best_setting())
    for name in study.names:
        parts = study.predictions(name).values()
        runs = [(part, position) for part in parts for position in range(len(part["seed"]))]
        if runs:
            targets = [part[task.target_name] for part, _ in runs]
            seeds = [
                np.full(len(target), part["seed"][position])
                for target, (part, position) in zip(targets, runs, strict=True)
            ]
            scored[name] = Scored(
                split="test",
                evaluation=None,
                answers={
                    answer: np.concatenate([part[answer][position] for part, position in runs])
                    for answer in task.stored_answers
                },
                target=np.concatenate(targets),
                seeds=np.concatenate(seeds),
                highlighted=name in highlighted,
            )
    return scored


def _headlines(tables: StudyTables) -> list[Headline]:
    study, metric = tables.study, tables.main
    first, best = study.names[0], tables.best_setting()
    headlines = []
    for level in study.levels:
        found = study.summaries(level, metric.name)
        note = "the first setting"
        if best != first:
            change = metric.change(found[best].mean - found[first].mean)
            if best in study.unpaired_settings:
                change = "on other samples"
            note = f"best: {best}, {change}"
        value = mean_and_spread(metric, found[first]) or "-"
        headlines.append(Headline(f"{first}, {metric.name} per {level}", value, note))
    record = study.record
    num_settings, num_folds, num_seeds = (
        len(record[part]) for part in ("settings", "folds", "seeds")
    )
    runs = sum(of.runs for of in study.summaries(study.levels[0], metric.name).values())
    note = f"{len(study.names)} settings, {num_folds} folds, {num_seeds} seeds"
    headlines.append(Headline("Runs", f"{runs} of {num_settings * num_folds * num_seeds}", note))
    return headlines


def _validation_section(tables: StudyTables) -> Section | None:
    if not tables.study.has_validation:
        return None
    note = (
        "Of samples that are neither trained on nor tested on: settings are chosen by these "
        "scores, and those of the test split below say what the choice is worth."
    )
    blocks: list[Block] = [TableBlock(tables.settings("sample", "valid")), TextBlock.of(note)]
    return Section("Validation", [*blocks, *_unpaired_blocks(tables)])


def _unpaired_blocks(tables: StudyTables) -> list[Block]:
    note = tables.unpaired_note()
    return [TextBlock.of(note)] if note else []


def _results_section(tables: StudyTables) -> Section:
    study, metric = tables.study, tables.main
    blocks: list[Block] = [TableBlock(tables.overview(), "In short")]
    pictures = []
    for level in study.levels:
        title = f"{metric.name} per {level}"
        blocks.append(TableBlock(tables.settings(level), title))
        found = study.summaries(level, metric.name)
        if metric.is_share:
            by_fold = [of.by_fold for of in found.values()]
            spread = [of.over_seeds for of in found.values()]
            figure = result_figures.setting_dots(list(found), by_fold, spread, title)
            alt = f"{title} of every setting, with its spread"
            pictures.append(Picture(f"settings_{level}", figure, alt))
    unit = ", in percentage points" if metric.is_share else ""
    blocks.append(
        TextBlock.of(
            f"On the test split. sd over seeds: deviation of the means over folds{unit}; sd over "
            "folds: deviation of the means over seeds, which says how much harder one fold is than "
            f"another. Differences are paired, run by run, with {study.names[0]} on the same fold "
            "and seed; better in: of how many pairs."
        )
    )
    blocks += _unpaired_blocks(tables)
    if pictures:
        caption = "Large dot and bar: mean, one deviation over seeds; small dots: means of folds."
        blocks.append(Pictures(pictures, caption))
    if others := tables.other_metrics():
        blocks.append(TableBlock(others, "Other metrics: mean \u00b1 deviation over seeds"))
    return Section("Results", blocks)


def _cost_section(tables: StudyTables) -> Section:
    study, metric = tables.study, tables.main
    unit, _ = tables.cost_unit()
    blocks: list[Block] = []
    pictures = []
    for level in study.levels:
        points = tables.cost_points(level)
        if len(points) > 1 and metric.is_share:
            title = f"{metric.name} per {level}"
            figure = result_figures.pareto(points, title, f"{unit} of a sample")
            pictures.append(Picture(f"pareto_{level}", figure, f"{title} against {unit}"))
    if pictures:
        caption = (
            "The line joins the settings that no other one beats in both; bars: one deviation over "
            "seeds."
        )
        blocks.append(Pictures(pictures, caption))
    blocks.append(TableBlock(tables.costs()))
    blocks.append(
        TextBlock.of(
            f"One sample, forward. {unit} counts matrix products alone, 2 operations a "
            "multiply-add. Tokens are those of all modalities, without CLS, in front of and behind "
            "the pools. On the frontier: no other setting is as cheap and better, per "
            f"{study.levels[0]}."
        )
    )
    return Section("Accuracy against cost", blocks)


def _conditions_section(tables: StudyTables) -> Section | None:
    """The test split with a part of the input removed."""
    study, metric = tables.study, tables.main
    if study.conditions == ["complete"]:
        return None
    blocks: list[Block] = []
    pictures = []
    for level in study.levels:
        title = f"{metric.name} per {level}"
        blocks.append(TableBlock(tables.conditions(level), title))
        if metric.is_share:
            scores = {}
            for condition in study.conditions:
                found = study.summaries(level, metric.name, condition)
                scores[condition] = [
                    found[name].mean if name in found else None for name in study.names
                ]
            figure = result_figures.condition_dots(study.names, scores, title)
            alt = f"{title} of every setting under every condition"
            pictures.append(Picture(f"conditions_{level}", figure, alt))
    note = (
        "Trained models, judged on a test split from which something was taken away; mean \u00b1 "
        "deviation over seeds."
    )
    blocks.append(TextBlock.of(note))
    if pictures:
        blocks.append(Pictures(pictures, "What each setting reaches under each condition."))
    return Section("Something missing at test time", blocks)


def _curves_section(tables: StudyTables, task: Task) -> Section | None:
    found = {
        metric: dict(list(curves.items())[:_MOST_CURVES])
        for metric, curves in tables.curves().items()
    }
    caption = "Mean over folds and seeds; bands: one deviation of the runs to both sides."
    omitted = len(tables.study.names) - _MOST_CURVES
    if omitted > 0:
        caption += f" The first {_MOST_CURVES} settings; {omitted} are left out."
    x_label = "epoch" if tables.study.axis == "epoch" else "optimizer step"
    return bands_section(found, task, "setting", x_label, caption)


def _protocol_section(study: StudyFolder) -> Section:
    record = study.record
    settings = [
        {
            "setting": entry["name"],
            "changes": ", ".join(f"{k} = {v}" for k, v in entry.get("overrides", {}).items())
            or None,
        }
        for entry in record["settings"]
    ]
    folds = []
    for entry in record["folds"]:
        held_out = [str(name) for name in entry.get("test", ())]
        folds.append({"fold": entry["name"], "held out for test": ", ".join(held_out) or None})
    folder = shlex.quote(str(study.workdir))
    config = shlex.quote(f"configs/studies/{record['name']}.py")
    commands = [
        f"python -m sft_jax.sweep --config={config} --workdir={folder}",
        f"python -m sft_jax.report --workdir={folder}",
    ]
    return Section(
        "Protocol",
        [
            TextBlock.of(f"Seeds: {', '.join(map(str, record['seeds']))}."),
            TableBlock(settings, "Settings"),
            TableBlock(folds, "Folds"),
            TextBlock.of("Every score of every run is in ", Code("results.csv"), "."),
            Commands("\n".join(commands)),
        ],
    )
