"""The tables of `python -m sft_jax.benchmark`: models side by side, and one setting varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from sft_jax.config import Config
from sft_jax.efficiency.measure import KINDS, Candidate, Measurement, candidate, rates
from sft_jax.efficiency.sweep import Value, at, exponent

_PROFILED_STEPS = 3


def rows(measured: Mapping[str, Measurement]) -> list[dict[str, Any]]:
    """Rows of a table, one a model, each with its ratios to the first."""
    first = next(iter(measured.values()))
    return [
        {
            "model": name,
            "train samples/s": round(entry.rate["train"].median, 1),
            "low to high": f"{entry.rate['train'].low:.1f} to {entry.rate['train'].high:.1f}",
            "times": round(entry.rate["train"].median / first.rate["train"].median, 2),
            "inference samples/s": round(entry.rate["infer"].median, 1),
            "low to high ": f"{entry.rate['infer'].low:.1f} to {entry.rate['infer'].high:.1f}",
            "times ": round(entry.rate["infer"].median / first.rate["infer"].median, 2),
            "train temporary MB": _megabytes(entry.temporary_bytes["train"]),
            "forward GFLOP": round(entry.gflop["infer"], 3),
            "train peak share": f"{entry.share_of_peak['train']:.0%}",
            "compile s": round(sum(entry.compile_seconds.values()), 1),
        }
        for name, entry in measured.items()
    ]


def _megabytes(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def profile(candidates: Mapping[str, Candidate], folder: Path):
    """Writes a trace of a few steps of each, named, for Perfetto or XProf."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for name, entry in candidates.items():
            for kind in KINDS:
                for step in range(_PROFILED_STEPS):
                    with jax.profiler.StepTraceAnnotation(f"{name} {kind}", step_num=step):
                        jax.block_until_ready(getattr(entry, kind)())


def along(
    configs: Mapping[str, Config], axis: str, values: Sequence[Value], repeats: int, window: int
) -> list[dict[str, Any]]:
    """Models along a sweep, those of one value timed in turn.

    Returns:
        A row for every value and model: seconds of a step and a sample, temporary memory.

    Raises:
        ConfigError: see `sweep.at`.
    """
    found = []
    for value in values:
        moved = {name: at(config, axis, value) for name, config in configs.items()}
        candidates = {name: candidate(config) for name, config in moved.items()}
        measured = rates(candidates, repeats, window)
        for name, entry in candidates.items():
            found.append(
                {
                    axis: value,
                    "model": name,
                    **{f"{kind} ms a sample": 1e3 / measured[name, kind].median for kind in KINDS},
                    **{
                        f"{kind} temporary MB a sample": entry.temporary_bytes[kind]
                        / 1e6
                        / entry.batch_size
                        for kind in KINDS
                    },
                }
            )
    return found


def exponents(table: Sequence[Mapping[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Rows of the powers of `axis` that each model's costs grow with, fitted over the sweep."""
    columns = [key for key in table[0] if key not in (axis, "model")]
    found = []
    for name in dict.fromkeys(row["model"] for row in table):
        own = [row for row in table if row["model"] == name]
        values = [row[axis] for row in own]
        fitted = {
            column: round(exponent(values, [row[column] for row in own]), 2) for column in columns
        }
        found.append({"model": name, **fitted})
    return found
