"""Benchmarks as tables and numbers: models side by side, and one setting varied."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency.flops import CONVENTION
from sft_jax.efficiency.measure import (
    KINDS,
    Measurement,
    Rate,
    candidate,
    measure,
    profile,
    rates,
    uncompiled,
)
from sft_jax.efficiency.model_costs import random_batch
from sft_jax.efficiency.scaling import Value, exponent, parse_values, with_setting
from sft_jax.efficiency.throughput import matmul_peak, peak_memory, peak_memory_of
from sft_jax.types import Batch

Row = dict[str, Any]


# Training, inference, and both in a new process: functions of another library, by name.
Others = Mapping[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Result of a benchmark.

    Attributes:
        tables: Table rows by heading, which may be empty.
        note: Circumstances of the measurement, in a paragraph.
        numbers: The measurements as plain data.
    """

    tables: dict[str, list[Row]]
    note: str
    numbers: dict[str, Any]

    def text(self, format_table: Callable[[list[Row]], str]) -> str:
        """Tables with their headings, then the note."""
        parts = [part for heading, rows in self.tables.items() for part in (heading, rows)]
        texts = [part if isinstance(part, str) else format_table(part) for part in parts]
        return "\n\n".join(filter(None, [*texts, self.note]))

    def save(self, path: Path):
        """Writes the numbers as JSON."""
        path.write_text(json.dumps(self.numbers, indent=1) + "\n")


def compare_models(
    configs: Mapping[str, Config],
    repeats: int,
    window: int,
    others: Callable[[Config, Batch], Others] | None = None,
    process_memory: bool = False,
    profile_folder: Path | None = None,
) -> Benchmark:
    """Times models in turn.

    Args:
        configs: Configurations by model. The peak is measured with the data type of the first.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.
        others: Function that returns another library's versions of a configured model, to be timed
            beside the first model on a batch.
        process_memory: Whether to also measure each model's peak memory in a separate process.
        profile_folder: Folder for a trace of a few steps of each model; None for no trace.
    """
    candidates = {name: candidate(config) for name, config in configs.items()}
    first = next(iter(configs.values()))
    for name, functions in others(first, random_batch(first)).items() if others else ():
        candidates[name] = uncompiled(first, *functions)
    peak = matmul_peak(first.model.dtype)
    measured = measure(candidates, peak, repeats, window)
    numbers = {name: measurement.to_json() for name, measurement in measured.items()}
    process_bytes = {}
    if process_memory:
        for name, model in candidates.items():
            process_bytes[name] = peak_memory_of(model.run_alone)
            numbers[name]["process_peak_bytes"] = process_bytes[name]
    if profile_folder:
        profile(candidates, profile_folder)
    mixup = any(config.mixup.mode != "none" for config in configs.values())
    note = (
        f"{_circumstances(first)}, {'mixup as configured' if mixup else 'no mixup'}, nothing "
        f"masked. {_rounds(repeats, window)}. {CONVENTION}; peak share is relative to a large "
        f"matrix product here, {peak / 1e9:.0f} GFLOP/s. Peak memory of this process: "
        f"{peak_memory() / 1e6:.0f} MB."
    )
    about = {"matmul_peak_flops_per_second": peak, "process_peak_bytes": peak_memory()}
    return Benchmark(
        tables={"": model_rows(measured, process_bytes)},
        note=note,
        numbers={**_settings(first, repeats, window), **about, "models": numbers},
    )


def model_rows(
    measured: Mapping[str, Measurement], process_bytes: Mapping[str, int] | None = None
) -> list[Row]:
    """One row for each model, with its ratios to the first.

    Args:
        measured: Measurements by model.
        process_bytes: Peak bytes of a separate process by model; adds a column.
    """
    first = next(iter(measured.values()))
    return [
        {
            "model": name,
            "parameters": model.parameters,
            "train samples/s": round(model.rate["train"].median, 1),
            "low to high": _range(model.rate["train"]),
            "times": round(model.rate["train"].median / first.rate["train"].median, 2),
            "inference samples/s": round(model.rate["infer"].median, 1),
            "low to high ": _range(model.rate["infer"]),
            "times ": round(model.rate["infer"].median / first.rate["infer"].median, 2),
            "train temporary MB": _megabytes(model.temporary_bytes["train"]),
            "inference temporary MB": _megabytes(model.temporary_bytes["infer"]),
            **({"process MB": _megabytes(process_bytes[name])} if process_bytes else {}),
            "forward GFLOP": round(model.gflop["infer"], 3),
            "train peak share": f"{model.share_of_peak['train']:.0%}",
            "inference peak share": f"{model.share_of_peak['infer']:.0%}",
            "compile s": round(sum(model.compile_seconds.values()), 1),
        }
        for name, model in measured.items()
    ]


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
        """Median milliseconds per sample."""
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


def sweep(
    configs: Mapping[str, Config], axis: str, values: Sequence[str], repeats: int, window: int
) -> Benchmark:
    """Times models along a sweep, all values of all models in turn.

    Args:
        configs: Configurations by model.
        axis: Key of `scaling.AXES`.
        values: Values of that setting as text; a default range if empty.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive steps per round, synchronised only at the end.

    Raises:
        ConfigError: The axis is unknown, or a value does not fit a configuration.
    """
    points = sweep_points(configs, axis, parse_values(axis, values), repeats, window)
    tables: dict[str, list[Row]] = {"": sweep_rows(points, axis)}
    powers = {}
    if axis != "dtype" and len({point.value for point in points}) > 1:
        powers = exponents(points)
        tables[f"Exponent of {axis} with which a cost grows:"] = exponent_rows(powers)
    first = next(iter(configs.values()))
    numbers = [point.to_json(axis) for point in points]
    return Benchmark(
        tables=tables,
        note=f"{_circumstances(first)}, except for {axis}; time and memory per sample. "
        f"{_rounds(repeats, window)}.",
        numbers={
            **_settings(first, repeats, window),
            "axis": axis,
            "sweep": numbers,
            "exponents": powers,
        },
    )


def sweep_points(
    configs: Mapping[str, Config], axis: str, values: Sequence[Value], repeats: int, window: int
) -> list[Point]:
    """Measurements of a sweep; see `sweep` for the arguments."""
    varied = {
        (value, name): with_setting(config, axis, value)
        for value in values
        for name, config in configs.items()
    }
    candidates = {key: candidate(config) for key, config in varied.items()}
    measured = rates(candidates, repeats, window)
    return [
        Point(*key, model.batch_size, measured[key], model.temporary_bytes)
        for key, model in candidates.items()
    ]


def sweep_rows(points: Sequence[Point], axis: str) -> list[Row]:
    """One row for each value and model, with time and memory per sample."""
    return [
        {
            axis: point.value,
            "model": point.model,
            "train ms": round(point.milliseconds("train"), 3),
            "low to high": _time_range(point.rate["train"]),
            "inference ms": round(point.milliseconds("infer"), 3),
            "low to high ": _time_range(point.rate["infer"]),
            "train temporary MB": _megabytes(point.temporary("train")),
            "inference temporary MB": _megabytes(point.temporary("infer")),
        }
        for point in points
    ]


def exponents(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Exponents with which the costs of a sample grow along the sweep.

    Returns:
        `{model: {kind: {"time": p, "temporary": p}}}`; None if a cost is unknown.

    Raises:
        ConfigError: There are fewer than two values.
    """
    powers: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in dict.fromkeys(point.model for point in points):
        line = [point for point in points if point.model == name]
        values = [float(point.value) for point in line]
        powers[name] = {}
        for kind in KINDS:
            sizes = [size for point in line if (size := point.temporary(kind))]
            powers[name][kind] = {
                "time": exponent(values, [point.milliseconds(kind) for point in line]),
                "temporary": exponent(values, sizes) if len(sizes) == len(line) else None,
            }
    return powers


def exponent_rows(powers: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[Row]:
    """One row of `exponents` for each model."""
    return [
        {
            "model": name,
            "train time": _rounded(costs["train"]["time"]),
            "inference time": _rounded(costs["infer"]["time"]),
            "train temporary": _rounded(costs["train"]["temporary"]),
            "inference temporary": _rounded(costs["infer"]["temporary"]),
        }
        for name, costs in powers.items()
    ]


def _rounded(power: float | None) -> float | None:
    return None if power is None else round(power, 2)


def machine() -> str:
    """Devices and version of JAX, in words."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _circumstances(config: Config) -> str:
    return f"{machine()}, batch {config.train.batch_size}, {config.model.dtype}"


def _rounds(repeats: int, window: int) -> str:
    return f"Median, lowest and highest of {repeats} rounds of {window} steps, in turn"


def _settings(config: Config, repeats: int, window: int) -> dict[str, Any]:
    return {
        "machine": machine(),
        "batch_size": config.train.batch_size,
        "dtype": config.model.dtype,
        "rounds": repeats,
        "steps_per_round": window,
        "flop_convention": CONVENTION,
    }


def _range(rate: Rate) -> str:
    return f"{rate.low:.1f} to {rate.high:.1f}"


def _time_range(rate: Rate) -> str:
    return f"{1e3 / rate.high:.3g} to {1e3 / rate.low:.3g}"


def _megabytes(size: int | float | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)
