"""From a run folder to `report.md` with its figures.

What is read (every fraction is between 0 and 1, every loss in nats):

- `config.json`: the run's configuration, as `config_io.to_dict` writes it.
- `data.json`: `class_names`; `modalities`, a list of `{name, length, feature_dim}`; `counts`, for
  each split the samples of each class, `{split: [c]}`; optionally `groups`, `{split: number}`,
  `num_parameters`, and `command`, the command line that trained the run.
- `metrics.jsonl`: one object a line, `{kind: "train"|"valid", step, epoch, loss, top1}`, for
  `train` also `learning_rate`, `gradient_norm`, `samples_per_second`. Where a step is there twice
  (a run that was resumed), the last line holds.
- `evaluation_<split>.json`, what `training.metrics.evaluate` returns: `split`, `step`,
  `num_samples`; `metrics`, for `top1`, `top3`, `top5`, `loss`, `macro_f1`, `mAP`, `mAUC`, `d_prime`
  `{value, low, high}`; `ranked_by` ("logits" or "probabilities", what mAP and mAUC rank);
  `absent_classes`, names; `resampled` ("sample" or "group", what the bootstrap drew); `majority`,
  its `class` and what it reaches in each metric but the loss; `per_class`, a list of
  `{class, precision, recall, f1, support}`; `confusion` `[c][c]`; `group`, null or
  `{num_groups, top1: {value, low, high}}`; `sentiment`, null or for each metric of
  `training.sentiment` `{value, low, high, majority, num_samples, left_out}`. A value that is
  undefined is null, and so are the ends of an interval where there is none.
- `example.npz`, one recording: for each modality `signal/<m>` `[t, f]`, `kept/<m>` `[k]` (token
  indices, -1 in empty slots), `saliency/<m>` `[k]`, `span/<m>` `[tokens, 2]` (first time step and
  the one past the last); `sampling_rate` (time steps a second) and `title`.

Beside them lies `predictions_<split>.npz`, not read here: `id`, `group` (text), `label`,
`predicted` (integers) `[n]`, `probabilities` `[n, c]` float32, and for each modality
`kept/<m>/indices` and `kept/<m>/saliency` `[n, k]`.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax import config_io
from sft_jax.analysis import plots
from sft_jax.config import Config
from sft_jax.types import CheckpointError, DataError

SPLIT_ORDER = ("test", "valid", "train")
MOST_CLASS_COLUMNS = 12
# In nats, on the scale of the data, or without a unit; every other metric is a share.
NO_SHARE = ("loss", "d_prime", "mae", "corr")
NUMBER = re.compile(r"[-+]?[\d.,]+%?|-")


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording and what the model kept of it.

    Attributes:
        signals: `{m: [t, f]}`.
        kept: `{m: [k]}` token indices, -1 in empty slots.
        saliency: `{m: [k]}`, or None.
        spans: `{m: [tokens, 2]}` time steps `(start, stop)` of every token.
        sampling_rate: time steps a second.
        title: heading of the figure.
    """

    signals: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    saliency: Mapping[str, np.ndarray] | None
    spans: Mapping[str, np.ndarray]
    sampling_rate: float
    title: str


def save_example(path: Path, example: Example) -> Path:
    """Writes `example` as `.npz` (see the top of this module) and returns `path`."""
    entries = {"sampling_rate": np.float64(example.sampling_rate), "title": np.str_(example.title)}
    for prefix, arrays in (
        ("signal", example.signals),
        ("kept", example.kept),
        ("saliency", example.saliency or {}),
        ("span", example.spans),
    ):
        entries |= {f"{prefix}/{name}": array for name, array in arrays.items()}
    np.savez_compressed(path, **entries)
    return path


def load_example(path: Path) -> Example:
    """Reads what `save_example` wrote; raises `DataError` when an entry is missing."""
    with np.load(path, allow_pickle=False) as file:
        entries = {key: file[key] for key in file.files}
    names = [key.removeprefix("signal/") for key in entries if key.startswith("signal/")]
    wanted = [f"{prefix}/{name}" for prefix in ("kept", "span") for name in names]
    missing = [key for key in (*wanted, "sampling_rate", "title") if key not in entries]
    if missing or not names:
        raise DataError(
            f"{path}: found {sorted(entries)}, expected also {missing or 'signal/<modality>'}; "
            "write it with `python -m sft_jax.evaluate`"
        )
    parts = {
        prefix: {m: entries[f"{prefix}/{m}"] for m in names if f"{prefix}/{m}" in entries}
        for prefix in ("signal", "kept", "saliency", "span")
    }
    return Example(
        signals=parts["signal"],
        kept=parts["kept"],
        saliency=parts["saliency"] or None,
        spans=parts["span"],
        sampling_rate=float(entries["sampling_rate"]),
        title=str(entries["title"]),
    )


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an aligned table, readable in a terminal and valid Markdown.

    Args:
        rows: one mapping a row; columns are their keys in order of first appearance. Floats get
            four significant digits, None and missing entries a dash; columns of numbers and
            percentages stand to the right.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [all(NUMBER.fullmatch(line[i]) for line in cells) for i in range(len(columns))]
    lines = [[_cell(column) for column in columns], *cells]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]

    def draw(line: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if r else "-" * width
        for width, r in zip(widths, right, strict=True)
    ]
    return "\n".join([draw(lines[0]), draw(rule), *map(draw, cells)])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a `metrics.jsonl`, ordered by step; the last one of a kind and step holds.

    Raises:
        CheckpointError: a line is not a record, or there is none.
    """
    records = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            records[record["kind"], record["step"]] = record
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}, line {number}: found {line[:60]!r}, expected an object with kind and "
                "step; a run that was cut off may have left it: remove the line"
            ) from error
    if not records:
        raise CheckpointError(
            f"{path}: found no record, expected what training logs; let `python -m sft_jax.train` "
            "run past its first train.log_every steps"
        )
    return [records[key] for key in sorted(records, key=lambda key: (key[1], key[0]))]


def read_evaluations(workdir: Path) -> list[dict[str, Any]]:
    """What `evaluate` left in a run folder, one a split: test, valid, train, then by name.

    Raises:
        CheckpointError: there is none.
    """
    keys = ("split", "step", "num_samples", "metrics", "majority", "per_class", "confusion")
    evaluations = [_read_json(path, *keys) for path in workdir.glob("evaluation_*.json")]
    if not evaluations:
        raise CheckpointError(
            f"{workdir}: found no evaluation_<split>.json; make one with "
            f"`python -m sft_jax.evaluate --workdir={workdir} --split=test`"
        )
    order = {split: i for i, split in enumerate(SPLIT_ORDER)}
    return sorted(evaluations, key=lambda e: (order.get(e["split"], len(order)), e["split"]))


def metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for `format_table`: each metric with its 95 % interval, N and the majority baseline.

    Metrics of sentiment come last, with how many samples each leaves out.
    """
    majority = evaluation["majority"]
    rows = [
        _metric_row(name, "sample", evaluation["num_samples"], estimate)
        | {"majority class": _figure(name, majority.get(name))}
        for name, estimate in evaluation["metrics"].items()
    ]
    rows[0]["majority class"] += f" ({majority['class']})"
    group = evaluation["group"]
    if group is not None:
        rows.append(_metric_row("top1", "group", group["num_groups"], group["top1"]))
    for name, estimate in (evaluation.get("sentiment") or {}).items():
        row = _metric_row(name, "sample", estimate["num_samples"], estimate)
        row["majority class"] = _figure(name, estimate["majority"])
        rows.append(row | {"left out": estimate["left_out"]})
    return rows


def write_report(workdir: Path | str, *, example: Example | None = None) -> Path:
    """Writes `report.md` and its figures into a run folder.

    The figures are `learning_curves.png`, `confusion.png` (of the first split that was evaluated:
    test, valid, train) and, with an example, `kept_tokens.png`.

    Args:
        workdir: the run folder (its files: see the top of this module).
        example: a recording to show the kept tokens of.

    Returns:
        Path of `report.md`.

    Raises:
        CheckpointError: a file of the run is missing; the message names the command that makes it.
    """
    workdir = Path(workdir)
    for name in ("config.json", "data.json", "metrics.jsonl"):
        if not (workdir / name).is_file():
            raise CheckpointError(
                f"{workdir}: found no {name}, expected a run folder; make one with "
                f"`python -m sft_jax.train --config=configs/<run>.py --workdir={workdir}`"
            )
    config = config_io.from_dict(_read_json(workdir / "config.json"))
    data = _read_json(workdir / "data.json", "class_names", "modalities", "counts")
    records = read_metrics(workdir / "metrics.jsonl")
    evaluations = read_evaluations(workdir)
    shown = evaluations[0]
    plots.save(plots.learning_curves(records), workdir / "learning_curves.png")
    figure = plots.confusion_matrix(np.asarray(shown["confusion"]), data["class_names"])
    plots.save(figure, workdir / "confusion.png")
    parts = [_run_part(config, data, records), _data_part(config, data)]
    parts += [_evaluation_part(evaluation) for evaluation in evaluations]
    parts.append(_figures_part(shown["split"], example, workdir))
    parts.append(_commands_part(workdir, data, [e["split"] for e in evaluations]))
    path = workdir / "report.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _run_part(config: Config, data: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    model, train, optimizer = config.model, config.train, config.optimizer
    settings = {
        "model": f"{model.name}, preset {model.preset}, {model.dtype}",
        "width, heads": f"{model.embed_dim}, {model.num_heads}",
        "layers before, after fusion": f"{model.num_pre_layers}, {model.num_post_layers}",
        "parameters": f"{data['num_parameters']:,}" if "num_parameters" in data else None,
        "trained": f"{train.duration.value:g} {train.duration.unit} (to step "
        f"{records[-1]['step']}), batch {train.batch_size}, seed {train.seed}",
        "optimizer": f"AdamW, learning rate {optimizer.learning_rate:g} "
        f"({optimizer.schedule}), weight decay {optimizer.weight_decay:g}",
    }
    rows = [{"setting": key, "value": value} for key, value in settings.items() if value]
    return (
        f"# {model.name} on {config.data.source}\n\n{format_table(rows)}\n\n"
        "Every other setting is in `config.json`."
    )


def _data_part(config: Config, data: Mapping[str, Any]) -> str:
    specs = {spec.name: spec for spec in config.modalities}
    modalities = []
    for entry in data["modalities"]:
        row = {
            "modality": entry["name"],
            "length": entry["length"],
            "features": entry["feature_dim"],
        }
        spec = specs.get(entry["name"])
        if spec is not None:
            row |= {"tokens": spec.num_tokens, "pool": spec.pool, "kept": spec.num_pooled}
        modalities.append(row)
    splits = []
    for split, counts in data["counts"].items():
        row = {"split": split, "samples": sum(counts)}
        row["groups"] = data.get("groups", {}).get(split)
        if len(counts) <= MOST_CLASS_COLUMNS:
            row |= dict(zip(data["class_names"], counts, strict=True))
        else:
            row |= {"classes": len(counts), "smallest": min(counts), "largest": max(counts)}
        splits.append(row)
    return f"## Data\n\n{format_table(modalities)}\n\n{format_table(splits)}"


def _evaluation_part(evaluation: Mapping[str, Any]) -> str:
    group = evaluation["group"]
    lines = [
        f"## Results on {evaluation['split']} (step {evaluation['step']})",
        format_table(metric_rows(evaluation)),
        f"Intervals: 95 %, percentile bootstrap over {evaluation['resampled']}s; they do not cover "
        "the training seed.",
    ]
    if group is not None:
        lines[-1] += (
            " A group is what was recorded together: its samples are not independent, and at group "
            "level they vote by their mean probability."
        )
    absent = evaluation.get("absent_classes")
    if absent:
        lines.append(f"Without a sample, and left out of the means: {', '.join(absent)}.")
    if "ranked_by" in evaluation:
        lines.append(f"mAP, mAUC and d_prime rank samples by {evaluation['ranked_by']}.")
    if evaluation.get("sentiment"):
        lines.append(
            "`mae` to `f1_nonneg` judge the expected value of the classes, `acc2` and `f1` the "
            "most probable class; their baseline gives the commonest class or sign of the training "
            "split. Every F1 of sentiment is weighted by what was predicted."
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
    return "\n\n".join([*lines, format_table(scores)])


def _figures_part(split: str, example: Example | None, workdir: Path) -> str:
    parts = [
        "## Figures",
        "![Loss and top-1 against the optimizer step](learning_curves.png)",
        f"![Confusion matrix on {split}](confusion.png)",
    ]
    if example is not None:
        figure = plots.kept_tokens(
            example.signals,
            example.kept,
            {name: spans.tolist() for name, spans in example.spans.items()},
            example.sampling_rate,
            example.title,
            example.saliency,
        )
        plots.save(figure, workdir / "kept_tokens.png")
        parts.append("![Tokens that the pool kept of one recording](kept_tokens.png)")
    return "\n\n".join(parts)


def _commands_part(workdir: Path, data: Mapping[str, Any], splits: Sequence[str]) -> str:
    train = data.get("command", "# train with the settings of config.json, then:")
    folder = shlex.quote(str(workdir))
    evaluate = [f"python -m sft_jax.evaluate --workdir={folder} --split={s}" for s in splits]
    commands = "\n".join([train, *evaluate, f"python -m sft_jax.report --workdir={folder}"])
    return f"## How to repeat it\n\n```bash\n{commands}\n```"


def _metric_row(name: str, level: str, n: int, estimate: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = (_figure(name, estimate[key]) for key in ("value", "low", "high"))
    interval = None if low is None else f"{low} to {high}"
    return {
        "metric": name,
        "per": level,
        "value": value,
        "95 % interval": interval,
        "N": n,
    }


def _figure(name: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" if name in NO_SHARE else f"{value:.1%}"


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path}: found no JSON ({error}), expected an object; write it again"
        ) from error
    missing = [key for key in keys if key not in content]
    if missing:
        raise CheckpointError(
            f"{path}: found {sorted(content)}, expected also {missing}; write it again with this "
            "version"
        )
    return content


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines()).replace("|", "\\|")
