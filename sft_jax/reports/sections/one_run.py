"""The report of one run, section by section."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.metrics.calibration import NUM_BINS, reliability
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
)
from sft_jax.reports.figures import plots, result_plots
from sft_jax.reports.sections.run_scores import (
    ablation_rows,
    calibration_row,
    kept_rows,
    kept_share,
    metric_rows,
)
from sft_jax.reports.tables import figure_of, interval_of
from sft_jax.runs.run_folder import Run

MOST_CLASS_COLUMNS = 12


def run_document(run: Run, cost: Sequence[Mapping[str, Any]], cost_note: str) -> Document:
    """What there is to say of a run.

    Args:
        run: evaluated.
        cost: rows of models, the run's first; empty where it is not known.
        cost_note: what these rows mean.
    """
    first, *others = run.evaluations
    confusion = plots.confusion_matrix(np.asarray(first["confusion"]), run.data["class_names"])
    sections = [
        _results_section(first),
        _confusion_section(first["split"], confusion),
        *map(_results_section, others),
        _calibration_section(run),
        _ablation_section(run),
        _kept_section(run),
        _curves_section(run),
        Section("Cost", [Table(cost), Text.of(cost_note)]) if cost else None,
        _model_section(run),
        _commands_section(run),
    ]
    return Document(
        kind="run",
        title=f"{run.config.model.name} on {run.config.data.source}",
        lead=_lead(run),
        headlines=_headlines(run, cost),
        sections=[section for section in sections if section is not None],
    )


def _lead(run: Run) -> Text:
    shown = run.evaluations[0]
    groups = shown["group"]
    of_groups = f" in {groups['num_groups']} groups" if groups else ""
    return Text.of(
        "Run ",
        Mono(run.name),
        f", trained to step {run.records[-1]['step']} and judged on {shown['num_samples']} samples"
        f"{of_groups} of the {shown['split']} split, at step {shown['step']}.",
    )


def _headlines(run: Run, cost: Sequence[Mapping[str, Any]]) -> list[Headline]:
    shown = run.evaluations[0]
    found = [("Top-1 per sample", shown["metrics"]["top1"])]
    if shown["group"] is not None:
        found.append(("Top-1 per group", shown["group"]["top1"]))
    headlines = [
        Headline(label, figure_of("top1", of["value"]) or "-", interval_of("top1", of) or "")
        for label, of in found
    ]
    majority = shown["majority"]
    headlines.append(
        Headline(
            "Majority class", figure_of("top1", majority["top1"]) or "-", str(majority["class"])
        )
    )
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
            Table(rows),
            Text.of("Every other setting is in ", Mono("config.json"), "."),
            Table(modality_rows(run), "Modalities"),
            Table(_split_rows(data), "Splits"),
        ],
    )


def modality_rows(run: Run) -> list[dict[str, Any]]:
    """What comes in of each modality, and what its pool hands on."""
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
    for split, counts in data["counts"].items():
        row = {"split": split, "samples": sum(counts)}
        row["groups"] = data.get("groups", {}).get(split)
        if len(counts) <= MOST_CLASS_COLUMNS:
            row |= dict(zip(data["class_names"], counts, strict=True))
        else:
            row |= {"classes": len(counts), "smallest": min(counts), "largest": max(counts)}
        rows.append(row)
    return rows


def _curves_section(run: Run) -> Section:
    titles = {"loss": "Loss", "top1": "Top-1"}
    pictures = [
        Picture(
            f"curve_{metric}",
            plots.learning_curve(run.records, metric),
            f"{title} against the optimizer step",
        )
        for metric, title in titles.items()
    ]
    validated = any(record["kind"] == "valid" for record in run.records)
    caption = (
        "Training and validation; the ring marks the best validation."
        if validated
        else "Training; there was no validation."
    )
    return Section("Learning curves", [Pictures(pictures, caption)])


def _results_section(evaluation: Mapping[str, Any]) -> Section:
    group = evaluation["group"]
    intervals = (
        f"Parameters of step {evaluation['step']}. Intervals: 95 %, percentile bootstrap over "
        f"{evaluation['resampled']}s; they do not cover the training seed."
    )
    if group is not None:
        intervals += (
            " A group is what was recorded together: its samples are not independent, and at group "
            "level they vote by their mean probability."
        )
    blocks: list[Block] = [Table(metric_rows(evaluation)), Text.of(intervals)]
    absent = evaluation.get("absent_classes")
    if absent:
        blocks.append(Text.of(f"Without a sample, and left out of the means: {', '.join(absent)}."))
    if "ranked_by" in evaluation:
        blocks.append(Text.of(f"mAP, mAUC and d_prime rank samples by {evaluation['ranked_by']}."))
    if evaluation.get("sentiment"):
        blocks.append(
            Text.of(
                *(Mono("mae"), " to ", Mono("f1_nonneg")),
                " judge the expected value of the classes, ",
                *(Mono("acc2"), " and ", Mono("f1")),
                " the most probable class; their baseline gives the commonest class or sign of the "
                "training split. Every F1 of sentiment is weighted by what was predicted.",
            )
        )
    scores = [
        {
            "class": row["class"],
            **{
                key: f"{row[key]:.1%}" if row["support"] else None
                for key in ("precision", "recall", "f1")
            },
            "support": row["support"],
        }
        for row in evaluation["per_class"]
    ]
    title = f"Results on {evaluation['split']}"
    return Section(title, [*blocks, Table(scores, "Class by class")])


def _confusion_section(split: str, figure: Any) -> Section:
    picture = Picture("confusion", figure, f"Confusion matrix on {split}")
    caption = (
        f"Samples of the {split} split: rows are what they are, columns what they were called."
    )
    return Section("Confusion", [Pictures([picture], caption)])


def _calibration_section(run: Run) -> Section | None:
    """Of every split whose predictions are there; the first one is drawn."""
    if not run.predictions:
        return None
    rows = [
        calibration_row(run.evaluation(split), predictions)
        for split, predictions in run.predictions.items()
    ]
    split, predictions = next(iter(run.predictions.items()))
    found = reliability(predictions["probabilities"], predictions["label"])
    picture = Picture(
        "reliability",
        result_plots.reliability_diagram({split: found}),
        f"Accuracy against confidence on {split}",
    )
    caption = (
        f"Reliability on {split}: where the curve is below the broken line, the model is surer of "
        "itself than it is right."
    )
    note = (
        f"ECE: expected calibration error over {NUM_BINS} equal bins of confidence, in percentage "
        "points; gap: mean confidence less top-1. Brier: mean squared distance of probabilities "
        "and truth, between 0 and 2."
    )
    return Section("Calibration", [Table(rows), Text.of(note), Pictures([picture], caption)])


def _ablation_section(run: Run) -> Section | None:
    if not run.ablations:
        return None
    blocks: list[Block] = []
    for split, found in run.ablations.items():
        caption = f"On {split}" if len(run.ablations) > 1 else ""
        blocks.append(Table(ablation_rows(run.evaluation(split), found), caption))
    split, found = next(iter(run.ablations.items()))
    rows = [
        result_plots.Interval(f"without {name}", *(of["difference"]["top1"][end] for end in _ENDS))
        for name, of in found["without"].items()
        if of["num_samples"]
    ]
    blocks.append(
        Text.of(
            "The trained model, with one modality masked out of every sample; differences are to "
            "the complete input on the same samples, in percentage points but for the loss, and "
            f"intervals as above (bootstrap over {found['resampled']}s)."
        )
    )
    if rows:
        figure = result_plots.intervals(rows, "Change of top-1", zero=True)
        picture = Picture("ablation", figure, f"Change of top-1 without each modality on {split}")
        blocks.append(Pictures([picture], f"What taking a modality away changes on {split}."))
    return Section("Without a modality", blocks)


_ENDS = ("value", "low", "high")


def _kept_section(run: Run) -> Section | None:
    """How often each token was kept, and one recording."""
    blocks: list[Block] = []
    for split, predictions in list(run.predictions.items())[:1]:
        rows = kept_rows(run.config.modalities, predictions)
        if rows:
            blocks.append(Table(rows, f"Tokens that pools choose on {split}"))
            pictures = []
            for spec in run.config.modalities:
                share = kept_share(spec, predictions)
                if share is not None:
                    figure = result_plots.token_frequency(
                        share, spec.num_pooled / spec.num_tokens, spec.name
                    )
                    alt = f"Share of samples that keep each token of {spec.name}"
                    pictures.append(Picture(f"tokens_{spec.name}", figure, alt))
            caption = f"How often each token is kept, over the samples of the {split} split."
            blocks.append(Pictures(pictures, caption))
    example = run.example
    if example is not None:
        figure = plots.kept_tokens(
            example.signals,
            example.kept,
            {name: spans.tolist() for name, spans in example.spans.items()},
            example.sampling_rate,
            example.title,
            example.saliency,
        )
        picture = Picture("kept_tokens", figure, "Tokens that the pool kept of one recording")
        blocks.append(Pictures([picture], "One recording: what was kept of it is shaded."))
    return Section("Tokens kept", blocks) if blocks else None


def _commands_section(run: Run) -> Section:
    train = run.data.get("command", "# train with the settings of config.json, then:")
    folder = shlex.quote(str(run.workdir))
    evaluate = [f"python -m sft_jax.evaluate --workdir={folder} --split={s}" for s in run.splits]
    commands = [train, *evaluate, f"python -m sft_jax.report --workdir={folder}"]
    return Section("How to repeat it", [Commands("\n".join(commands))])
