"""What artefacts cost to run, and what eight bits cost in accuracy: one row an artefact."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.interop.artefacts import artefact_files
from sft_jax.interop.artefacts.stablehlo import Exportable
from sft_jax.runs.run_files import read_data
from sft_jax.tasks import Task
from sft_jax.training.session import Session, for_these_devices

_ROWS = 3  # samples that every artefact is compared with its model on


def measure(models: Mapping[str, Exportable], rounds: int, calls: int = 5) -> list[dict[str, Any]]:
    """Artefacts of every format on one row and one thread, each in a process of its own, in turn.

    Args:
        models: by name.
        rounds: counted ones, after one that is not.
        calls: of one artefact in a row; a round counts as their median.

    Returns:
        Plain numbers: `model`, `format`, `file_bytes`, `ready_seconds` (from reading the file to
        the first answer), `latency_seconds` (`median`, `low`, `high` over the rounds),
        `peak_bytes`, `runtime_bytes` (held before the artefact is read), `differences` from the
        model.

    Raises:
        ConfigError: an artefact that does not compute what its model does.
    """
    rows, processes = [], []
    seconds: list[list[float]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, model in models.items():
            arrays = artefact_files.example(model, _ROWS)
            expected = artefact_files.reference(model, arrays)
            paths = artefact_files.write(model, artefact_files.FORMATS, folder / name)
            for kind, path in paths.items():
                run = stack.enter_context(artefact_files.running(path, kind, arrays))
                found = artefact_files.Differences.between(run.outputs, expected)
                found.check(kind)
                rows.append(
                    {
                        "model": name,
                        "format": kind,
                        "file_bytes": path.stat().st_size,
                        "ready_seconds": run.ready_seconds,
                        "runtime_bytes": run.runtime_bytes,
                        "differences": dataclasses.asdict(found),
                    }
                )
                processes.append(run)
                seconds.append([])
        for number in range(rounds + 1):
            for run, taken in zip(processes, seconds, strict=True):
                once = float(np.median(run.seconds(calls)))
                taken += [once] if number else []
        for row, run, taken in zip(rows, processes, seconds, strict=True):
            median = float(np.median(taken))
            row["latency_seconds"] = {"median": median, "low": min(taken), "high": max(taken)}
            row["peak_bytes"] = run.peak_bytes()
    return rows


def cost_rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`measure`'s numbers as rows to read."""
    return [
        {
            "model": row["model"],
            "format": row["format"],
            "file kB": round(row["file_bytes"] / 1e3),
            "ready s": round(row["ready_seconds"], 2),
            "latency ms": round(1e3 * row["latency_seconds"]["median"], 2),
            "low to high": "{low:.2f} to {high:.2f}".format(
                **{key: 1e3 * row["latency_seconds"][key] for key in ("low", "high")}
            ),
            "peak MB": round(row["peak_bytes"] / 1e6),
            "runtime MB": round(row["runtime_bytes"] / 1e6),
            "logits differ by": f"{row['differences']['logits']:.1g}",
        }
        for row in measured
    ]


def score(
    model: Exportable, workdir: Path, split: str, data_dir: str | None = None
) -> list[dict[str, Any]]:
    """Accuracy of a run's artefacts on a split, beside the model's own.

    Args:
        model: of the run.
        workdir: of the run; its artefacts are written to `export/` there.
        split: which to score.
        data_dir: where prepared data are kept, if not where they were in training.

    Returns:
        Plain numbers: `artefact`, `samples`, `metric` (the main one), `percent` (its format),
        `value`, `file_bytes`, `differences` from the model.

    Raises:
        ConfigError: a float32 artefact that does not compute what the model does.
        CheckpointError: other data than the run's.
    """
    config = for_these_devices(model.config, data_dir)
    opened = Session.open(config, fingerprint=read_data(workdir, "fingerprint")["fingerprint"])
    arrays, target = _raw(opened, split)
    expected = artefact_files.reference(model, arrays)
    rows = [{"artefact": "the model itself", **_score(opened.task, expected, target)}]
    for kind, path in artefact_files.write(
        model, artefact_files.FORMATS, workdir / "export"
    ).items():
        artefact_files.compared(model, path, kind)
        with artefact_files.running(path, kind, arrays, rows=64) as run:
            # Not held to a tolerance: among so many tokens two may be as salient as each other,
            # and another order of summation then keeps the other one.
            found = artefact_files.Differences.between(run.outputs, expected)
            score = _score(opened.task, run.outputs, target)
        size = {"file_bytes": path.stat().st_size}
        rows.append({"artefact": kind, **score, **size, "differences": dataclasses.asdict(found)})
    return rows


def score_rows(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`score`'s numbers as rows to read."""
    rows = []
    for row in scored:
        shown = {
            "artefact": row["artefact"],
            "samples": row["samples"],
            row["metric"]: f"{row['value']:.2%}" if row["percent"] else f"{row['value']:.4f}",
        }
        if "differences" in row:
            found = row["differences"]
            shown |= {
                "file kB": round(row["file_bytes"] / 1e3),
                "another class": f"{found['predicted']:.2%}",
                "another token kept": f"{found['kept']:.3%}",
                "probabilities differ by": f"{found['probabilities']:.1g}",
            }
        rows.append(shown)
    columns = list(rows[-1])
    return [{column: row.get(column) for column in columns} for row in rows]


def _score(task: Task, outputs: Mapping[str, np.ndarray], target: np.ndarray) -> dict[str, Any]:
    metric = task.metrics[task.main_metric]
    return {
        "samples": len(target),
        "metric": metric.name,
        "percent": metric.format == "percent",
        "value": task.values(outputs, target)[metric.name],
    }


def _raw(opened: Session, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A split as the arrays of `export.signature`, in the units of the data, and its targets."""
    own = opened.normalizer
    plain = dataclasses.replace(
        own,
        shift={name: (0.0,) * len(numbers) for name, numbers in own.shift.items()},
        scale={name: (1.0,) * len(numbers) for name, numbers in own.scale.items()},
    )
    batches = list(dataclasses.replace(opened, normalizer=plain).batches(split))
    real = np.concatenate([batch["weight"] for batch in batches]) > 0

    def joined(part, name):
        return np.concatenate([batch[part][name] for batch in batches])[real]

    arrays = {}
    for spec in opened.config.modalities:
        arrays[spec.name] = joined("inputs", spec.name)
        arrays[f"mask/{spec.name}"] = joined("mask", spec.name)
    return arrays, np.concatenate([batch["target"] for batch in batches])[real]
