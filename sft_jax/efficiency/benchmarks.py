"""Tables of `python -m sft_jax.benchmark`: models side by side, and one setting varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency.measure import (
    KINDS,
    Candidate,
    Measurement,
    Rate,
    candidate,
    megabytes,
    rates,
)
from sft_jax.efficiency.scaling import Value, at, exponent

_PROFILED_STEPS = 3


def rows(
    measured: Mapping[str, Measurement], process_peaks: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """One row for each model, with its ratios to the first.

    Args:
        measured: Measurements by model.
        process_peaks: Peak bytes of a separate process by model; adds a column.
    """
    first = next(iter(measured.values()))
    return [
        {
            "model": name,
            "train samples/s": round(entry.rate["train"].median, 1),
            "low to high": _spread(entry.rate["train"]),
            "times": round(entry.rate["train"].median / first.rate["train"].median, 2),
            "inference samples/s": round(entry.rate["infer"].median, 1),
            "low to high ": _spread(entry.rate["infer"]),
            "times ": round(entry.rate["infer"].median / first.rate["infer"].median, 2),
            "train temporary MB": megabytes(entry.temporary_bytes["train"]),
            "inference temporary MB": megabytes(entry.temporary_bytes["infer"]),
            **({"process MB": megabytes(process_peaks[name])} if process_peaks else {}),
            "forward GFLOP": round(entry.gflop["infer"], 3),
            "train peak share": f"{entry.share_of_peak['train']:.0%}",
            "inference peak share": f"{entry.share_of_peak['infer']:.0%}",
            "compile s": round(sum(entry.compile_seconds.values()), 1),
        }
        for name, entry in measured.items()
    ]


def _spread(rate: Rate) -> str:
    return f"{rate.low:.1f} to {rate.high:.1f}"


def profile(candidates: Mapping[str, Candidate], folder: Path):
    """Writes a trace of a few named steps of each candidate, for Perfetto or XProf."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for name, entry in candidates.items():
            for kind in KINDS:
                for step in range(_PROFILED_STEPS):
                    with jax.profiler.StepTraceAnnotation(f"{name} {kind}", step_num=step):
                        jax.block_until_ready(getattr(entry, kind)())


class Point(NamedTuple):
    """One model at one value of a sweep.

    Attributes:
        value: Value of the setting that is varied.
        model: Name of the model.
        batch_size: Samples per step.
        rate: Samples per second by kind.
        temporary_bytes: Temporary bytes of a step by kind; None if unknown.
    """

    value: Value
    model: str
    batch_size: int
    rate: dict[str, Rate]
    temporary_bytes: dict[str, int | None]

    def milliseconds(self, kind: str) -> float:
        """Median seconds per sample."""
        return 1e3 / self.rate[kind].median

    def temporary(self, kind: str) -> float | None:
        """Temporary bytes per sample."""
        size = self.temporary_bytes[kind]
        return None if size is None else size / self.batch_size

    def to_json(self, axis: str) -> dict[str, Any]:
        """Plain data, with the value under the name of the varied setting."""
        kinds = {
            kind: {
                "samples_per_second": self.rate[kind]._asdict(),
                "milliseconds_per_sample": self.milliseconds(kind),
                "temporary_bytes_per_sample": self.temporary(kind),
            }
            for kind in KINDS
        }
        return {axis: self.value, "model": self.model, "batch_size": self.batch_size, **kinds}


def along(
    configs: Mapping[str, Config], axis: str, values: Sequence[Value], repeats: int, window: int
) -> list[Point]:
    """Times models along a sweep, all values of all models in turn.

    Args:
        configs: Configurations by model.
        axis: Key of `scaling.AXES`.
        values: Values of that setting.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.

    Raises:
        ConfigError: See `scaling.at`.
    """
    moved = {
        (value, name): at(config, axis, value)
        for value in values
        for name, config in configs.items()
    }
    candidates = {key: candidate(config) for key, config in moved.items()}
    measured = rates(candidates, repeats, window)
    return [
        Point(
            *key,
            entry.batch_size,
            {kind: measured[key, kind] for kind in KINDS},
            entry.temporary_bytes,
        )
        for key, entry in candidates.items()
    ]


def sweep_rows(points: Sequence[Point], axis: str) -> list[dict[str, Any]]:
    """One row for each value and model, with time and memory per sample."""
    return [
        {
            axis: point.value,
            "model": point.model,
            "train ms": round(point.milliseconds("train"), 3),
            "low to high": _times(point.rate["train"]),
            "inference ms": round(point.milliseconds("infer"), 3),
            "low to high ": _times(point.rate["infer"]),
            "train temporary MB": megabytes(point.temporary("train")),
            "inference temporary MB": megabytes(point.temporary("infer")),
        }
        for point in points
    ]


def _times(rate: Rate) -> str:
    return f"{1e3 / rate.high:.3g} to {1e3 / rate.low:.3g}"


def exponents(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Exponents with which the costs of a sample grow along the sweep.

    Returns:
        `{model: {kind: {"time": p, "temporary": p}}}`; None if a cost is unknown.

    Raises:
        ConfigError: There are fewer than two values.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == name]
        values = [float(point.value) for point in own]
        found[name] = {}
        for kind in KINDS:
            sizes = [size for point in own if (size := point.temporary(kind))]
            found[name][kind] = {
                "time": exponent(values, [point.milliseconds(kind) for point in own]),
                "temporary": exponent(values, sizes) if len(sizes) == len(own) else None,
            }
    return found


def exponent_rows(
    powers: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> list[dict[str, Any]]:
    """One row of `exponents` for each model."""
    return [
        {
            "model": name,
            "train time": _rounded(own["train"]["time"]),
            "inference time": _rounded(own["infer"]["time"]),
            "train temporary": _rounded(own["train"]["temporary"]),
            "inference temporary": _rounded(own["infer"]["temporary"]),
        }
        for name, own in powers.items()
    ]


def _rounded(power: float | None) -> float | None:
    return None if power is None else round(power, 2)
