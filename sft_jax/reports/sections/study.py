"""The report of a study, section by section."""

import shlex

from sft_jax.reports.document import (
    Block,
    Commands,
    Document,
    Headline,
    Mono,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    slug,
)
from sft_jax.reports.figures import plots, result_plots
from sft_jax.reports.figures.result_plots import LEAST_SHARE
from sft_jax.reports.sections.study_scores import (
    calibration_rows,
    condition_rows,
    cost_rows,
    cost_unit,
    curve_bands,
    metric_rows,
    overview_rows,
    pareto_points,
    pooled_confusion,
    pooled_reliability,
    setting_rows,
    summaries,
    with_spread,
)
from sft_jax.reports.tables import NO_SHARE, change_of
from sft_jax.runs.study_folder import StudyFolder

# Lines of a figure that can still be told apart.
MOST_LINES = 12


def study_document(study: StudyFolder) -> Document:
    """What there is to say of a study, as far as it has run."""
    sections = [
        _validation_section(study),
        _results_section(study),
        _cost_section(study),
        _conditions_section(study),
        _confusion_section(study),
        _calibration_section(study),
        _curves_section(study),
        _protocol_section(study),
    ]
    return Document(
        kind="study",
        title=study.record["title"],
        lead=Text.of(study.record["protocol"]),
        headlines=_headlines(study),
        sections=[section for section in sections if section is not None],
    )


def best_setting(study: StudyFolder) -> str:
    """The one of the highest mean of the study's metric (the lowest loss), per sample."""
    metric = study.record["metric"]
    found = summaries(study, study.levels[0], metric)
    sign = -1 if metric == "loss" else 1
    return max(found, key=lambda name: sign * found[name].mean)


def _headlines(study: StudyFolder) -> list[Headline]:
    metric, first, best = study.record["metric"], study.names[0], best_setting(study)
    headlines = []
    for level in study.levels:
        found = summaries(study, level, metric)
        note = "the first setting"
        if best != first:
            change = change_of(metric, found[best].mean - found[first].mean)
            note = f"best: {best}, {change}"
        value = with_spread(metric, found[first]) or "-"
        headlines.append(Headline(f"{first}, {metric} per {level}", value, note))
    record = study.record
    runs = sum(of.runs for of in summaries(study, study.levels[0], metric).values())
    planned = len(record["settings"]) * len(record["folds"]) * len(record["seeds"])
    note = (
        f"{len(study.names)} settings, {len(record['folds'])} folds, {len(record['seeds'])} seeds"
    )
    headlines.append(Headline("Runs", f"{runs} of {planned}", note))
    return headlines


def _validation_section(study: StudyFolder) -> Section | None:
    """What a setting is to be chosen by."""
    if not study.has_validation:
        return None
    metric = study.record["metric"]
    note = (
        "Of samples that are neither trained on nor tested on: settings are chosen by these "
        "scores, and those of the test split below say what the choice is worth."
    )
    return Section(
        "Validation", [Table(setting_rows(study, "sample", metric, "valid")), Text.of(note)]
    )


def _results_section(study: StudyFolder) -> Section:
    metric = study.record["metric"]
    blocks: list[Block] = [Table(overview_rows(study), "In short")]
    pictures = []
    for level in study.levels:
        blocks.append(Table(setting_rows(study, level, metric), f"{metric} per {level}"))
        found = summaries(study, level, metric)
        if metric not in NO_SHARE:
            figure = result_plots.setting_dots(
                list(found),
                [of.by_fold for of in found.values()],
                [of.over_seeds for of in found.values()],
                f"{metric} per {level}",
            )
            alt = f"{metric} per {level} of every setting, with its spread"
            pictures.append(Picture(f"settings_{level}", figure, alt))
    unit = "" if metric in NO_SHARE else ", in percentage points"
    blocks.append(
        Text.of(
            f"On the test split. sd over seeds: deviation of the means over folds{unit}; sd over "
            "folds: deviation of the means over seeds, which says how much harder one fold is than "
            f"another. Differences are paired, run by run, with {study.names[0]} on the same fold "
            "and seed; better in: of how many pairs."
        )
    )
    if pictures:
        caption = "Large dot and bar: mean, one deviation over seeds; small dots: means of folds."
        blocks.append(Pictures(pictures, caption))
    others = metric_rows(study)
    if others:
        blocks.append(Table(others, "Other metrics: mean \u00b1 deviation over seeds"))
    return Section("Results", blocks)


def _cost_section(study: StudyFolder) -> Section:
    unit, _ = cost_unit(study)
    metric = study.record["metric"]
    blocks: list[Block] = []
    pictures = []
    for level in study.levels:
        points = pareto_points(study, level)
        if len(points) > 1 and metric not in NO_SHARE:
            title = f"{metric} per {level}"
            figure = result_plots.pareto(points, title, f"{unit} of a sample")
            pictures.append(Picture(f"pareto_{level}", figure, f"{title} against {unit}"))
    if pictures:
        caption = (
            "The line joins the settings that no other one beats in both; bars: one deviation over "
            "seeds."
        )
        blocks.append(Pictures(pictures, caption))
    blocks.append(Table(cost_rows(study)))
    blocks.append(
        Text.of(
            f"One sample, forward. {unit} counts matrix products alone, 2 operations a "
            "multiply-add. Tokens are those of all modalities, without CLS, in front of and behind "
            "the pools. On the frontier: no other setting is as cheap and better, per "
            f"{study.levels[0]}."
        )
    )
    return Section("Accuracy against cost", blocks)


def _conditions_section(study: StudyFolder) -> Section | None:
    """The test split with something taken away."""
    conditions = study.conditions
    if conditions == ["complete"]:
        return None
    metric = study.record["metric"]
    blocks: list[Block] = []
    pictures = []
    for level in study.levels:
        blocks.append(Table(condition_rows(study, level, metric), f"{metric} per {level}"))
        scores = {}
        for condition in conditions:
            found = summaries(study, level, metric, condition)
            scores[condition] = [
                found[name].mean if name in found else None for name in study.names
            ]
        if metric not in NO_SHARE:
            figure = result_plots.condition_dots(study.names, scores, f"{metric} per {level}")
            alt = f"{metric} per {level} of every setting under every condition"
            pictures.append(Picture(f"conditions_{level}", figure, alt))
    blocks.append(
        Text.of(
            "Trained models, judged on a test split from which something was taken away; mean "
            "\u00b1 deviation over seeds."
        )
    )
    if pictures:
        blocks.append(Pictures(pictures, "What each setting reaches under each condition."))
    return Section("Something missing at test time", blocks)


def _confusion_section(study: StudyFolder) -> Section | None:
    """Of the first setting, and of the best one."""
    pictures = []
    for name in dict.fromkeys((study.names[0], best_setting(study))):
        counts = pooled_confusion(study, name)
        if counts is not None:
            figure = plots.confusion_matrix(counts, study.record["class_names"])
            alt = f"Confusion matrix of {name}"
            pictures.append(Picture(f"confusion_{slug(name)}", figure, alt))
    if not pictures:
        return None
    shown = " and ".join(picture.alt.removeprefix("Confusion matrix of ") for picture in pictures)
    caption = (
        f"{shown}, over all folds; every sample counts once a seed. A row is what samples are, a "
        "column what they were called."
    )
    return Section("Confusion", [Pictures(pictures, caption)])


def _calibration_section(study: StudyFolder) -> Section | None:
    rows = calibration_rows(study)
    if not rows:
        return None
    found = dict(list(pooled_reliability(study).items())[:MOST_LINES])
    picture = Picture(
        "reliability",
        result_plots.reliability_diagram(found),
        "Accuracy against confidence of every setting",
    )
    note = (
        "ECE: expected calibration error, in percentage points, of each seed over the samples of "
        "all folds; gap: mean confidence less top-1."
    )
    caption = (
        "Reliability over all folds and seeds: below the broken line, a model is surer of itself "
        f"than it is right. Bins of less than {LEAST_SHARE:.0%} of the samples are left out."
    )
    return Section("Calibration", [Table(rows), Text.of(note), Pictures([picture], caption)])


def _curves_section(study: StudyFolder) -> Section | None:
    found = curve_bands(study)
    if not found:
        return None
    pictures = [
        Picture(
            f"curve_{slug(metric)}",
            result_plots.bands(
                dict(list(curves.items())[:MOST_LINES]),
                metric,
                "epoch" if study.axis == "epoch" else "optimizer step",
                as_share=not metric.endswith(NO_SHARE),
            ),
            f"{metric} of every setting over training",
        )
        for metric, curves in found.items()
    ]
    caption = "Mean over folds and seeds; bands: one deviation of the runs to both sides."
    left_out = len(study.names) - MOST_LINES
    if left_out > 0:
        caption += f" The first {MOST_LINES} settings; {left_out} are left out."
    return Section("Learning curves", [Pictures(pictures, caption)])


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
            Text.of(f"Seeds: {', '.join(map(str, record['seeds']))}."),
            Table(settings, "Settings"),
            Table(folds, "Folds"),
            Text.of("Every score of every run is in ", Mono("results.csv"), "."),
            Commands("\n".join(commands)),
        ],
    )
