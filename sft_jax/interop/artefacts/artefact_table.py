"""Tables of the artefacts' cost and accuracy."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.interop.artefacts import artefact_files
from sft_jax.interop.artefacts.stablehlo import Exportable
from sft_jax.runs.run_files import read_data
from sft_jax.tasks import Task
from sft_jax.training.session import Session, reopen

_ROWS = 3  # samples for the comparison of an artefact with its model


def measure(models: Mapping[str, Exportable], rounds: int, calls: int = 5) -> list[dict[str, Any]]:
    """Times artefacts of every format on one sample and one thread, in turn in separate processes.

    Args:
        models: Models by name.
        rounds: Number of timed rounds, after one warm-up round.
        calls: Consecutive calls per round, of which the median counts.

    Returns:
        For each artefact `model`, `format`, `file_bytes`, `ready_seconds` (from reading the file to
        the first result), `latency_seconds` (`median`, `low`, `high` over the rounds),
        `peak_bytes`, `runtime_bytes` (before the artefact is read), and `differences` from the
        model.

    Raises:
        ConfigError: A float32 artefact differs from its model.
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
                differences = artefact_files.Differences.between(run.outputs, expected)
                differences.check(kind)
                rows.append(
                    {
                        "model": name,
                        "format": kind,
                        "file_bytes": path.stat().st_size,
                        "ready_seconds": run.ready_seconds,
                        "runtime_bytes": run.runtime_bytes,
                        "differences": dataclasses.asdict(differences),
                    }
                )
                processes.append(run)
                seconds.append([])
        for number in range(rounds + 1):
            for run, times in zip(processes, seconds, strict=True):
                latency = float(np.median(run.seconds(calls)))
                if number:
                    times.append(latency)
        for row, run, times in zip(rows, processes, seconds, strict=True):
            median = float(np.median(times))
            row["latency_seconds"] = {"median": median, "low": min(times), "high": max(times)}
            row["peak_bytes"] = run.peak_bytes()
    return rows


def cost_rows(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table rows of the result of `measure`."""
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
    model: Exportable,
    workdir: Path,
    split: str,
    data_dir: str | Path | None = None,
    data_path: Sequence[str | Path] = (),
) -> list[dict[str, Any]]:
    """Scores a run's model and its artefacts on a split.

    Args:
        model: Model of the run.
        workdir: Folder of the run; its artefacts are written to `export/` there.
        split: Split to score.
        data_dir: Folder of the prepared data, if it has moved since training.
        data_path: Paths of the source files, if they have moved since training.

    Returns:
        For each of them `artefact`, `samples`, `metric` (the main one), `percent` (whether it is
        shown as a percentage), `value`, and for artefacts `file_bytes` and `differences` from the
        model.

    Raises:
        ConfigError: A float32 artefact differs from the model.
        CheckpointError: The data are not those of the run.
    """
    fingerprint = read_data(workdir, "fingerprint")["fingerprint"]
    session = reopen(model.config, fingerprint, data_dir=data_dir, data_path=data_path)
    arrays, target = _raw_data(session, split)
    expected = artefact_files.reference(model, arrays)
    rows = [{"artefact": "the model itself", **_score(session.task, expected, target)}]
    for kind, path in artefact_files.write(
        model, artefact_files.FORMATS, workdir / "export"
    ).items():
        artefact_files.compared(model, path, kind)
        with artefact_files.running(path, kind, arrays, rows=64) as run:
            # Not checked against a tolerance: two of so many tokens may be equally salient, and
            # then rounding decides which of them is kept.
            differences = artefact_files.Differences.between(run.outputs, expected)
            score = _score(session.task, run.outputs, target)
        size = {"file_bytes": path.stat().st_size}
        rows.append(
            {"artefact": kind, **score, **size, "differences": dataclasses.asdict(differences)}
        )
    return rows


def score_rows(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table rows of the result of `score`."""
    rows = []
    for row in scored:
        shown = {
            "artefact": row["artefact"],
            "samples": row["samples"],
            row["metric"]: f"{row['value']:.2%}" if row["percent"] else f"{row['value']:.4f}",
        }
        if "differences" in row:
            differences = row["differences"]
            shown |= {
                "file kB": round(row["file_bytes"] / 1e3),
                "another answer": f"{differences['predicted']:.2%}",
                "another token kept": f"{differences['kept']:.3%}",
                "answers differ by": f"{differences['probabilities']:.1g}",
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
        "value": task.scorer(outputs, target)(np.ones(len(target), np.int64))[metric.name],
    }


def _raw_data(session: Session, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays of `stablehlo.signature` for a split, without normalisation, and its targets."""
    normalizer = session.normalizer
    identity = dataclasses.replace(
        normalizer,
        shift={name: (0.0,) * len(numbers) for name, numbers in normalizer.shift.items()},
        scale={name: (1.0,) * len(numbers) for name, numbers in normalizer.scale.items()},
    )
    batches = list(dataclasses.replace(session, normalizer=identity).batches(split))
    real = np.concatenate([batch["weight"] for batch in batches]) > 0

    def joined(part, name):
        return np.concatenate([batch[part][name] for batch in batches])[real]

    arrays = {}
    for spec in session.config.modalities:
        arrays[spec.name] = joined("inputs", spec.name)
        arrays[f"mask/{spec.name}"] = joined("mask", spec.name)
    return arrays, np.concatenate([batch["target"] for batch in batches])[real]
