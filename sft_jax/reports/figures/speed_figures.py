"""Figures of measured speed: models side by side, and cost along a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sft_jax.files.json_files import (
    MisfitError,
    all_of,
    check_value,
    list_of,
    map_of,
    nullable,
    number,
    record,
    text,
)
from sft_jax.reports.figures.style import (
    BLACK,
    COLORS,
    FRAME,
    SKY,
    label_powers,
    one_panel,
    open_frame,
    outside_legend,
)
from sft_jax.types import DataError

_PANELS = (("train", "Training"), ("infer", "Inference"))
_MEASURE = "measure again with `python -m sft_jax.benchmark --json=...`"
_KINDS = tuple(kind for kind, _ in _PANELS)
# Positive, so that it can be drawn on a logarithmic scale.
_POSITIVE = number(1e-30, 1e30)


def _ordered(value: Any, place: str):
    if not value["low"] <= value["median"] <= value["high"]:
        raise MisfitError(place, value, "low, median and high in this order")


_RATE = all_of(record(dict.fromkeys(("median", "low", "high"), _POSITIVE)), _ordered)
_RATES = record({"samples_per_second": _RATE})
_COSTS = record(
    {"samples_per_second": _RATE, "temporary_bytes_per_sample": nullable(number(0, 1e30))}
)
_INTENSITY = record(
    {"model": text(), "kind": text(), "flops_per_byte": _POSITIVE, "flops_per_second": _POSITIVE}
)


def _axis(value: Any, place: str):
    text(100)(value, place) if isinstance(value, str) else _POSITIVE(value, place)


# Models beyond the number of colors differ by their markers.
_LOOKS = tuple({"color": color, "marker": marker} for marker in ("o", "s") for color in COLORS)


def benchmark_figure(numbers: Mapping[str, Any]) -> Figure:
    """The figure of a benchmark.

    Args:
        numbers: Result of `python -m sft_jax.benchmark --json` with models or a sweep.

    Raises:
        DataError: There are neither models nor a sweep.
    """
    if "sweep" in numbers:
        return sweep_lines(numbers["sweep"], numbers["axis"])
    if "models" in numbers:
        return throughput_bars(numbers["models"])
    raise DataError(
        f"benchmark: found {', '.join(numbers)}, expected models or sweep; plot a benchmark with "
        "--config or --configs"
    )


def throughput_bars(measured: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Samples a second in training and inference, a bar for each model with its range of rounds.

    Args:
        measured: `{kind: {"samples_per_second": {"median", "low", "high"}}}` by model, with kinds
            `train` and `infer`, as `benchmark --json` writes it.

    Raises:
        DataError: There is no model.
    """
    if not measured:
        raise DataError("measured: found no model, expected at least one; run the benchmark")
    check_value(measured, map_of(record(dict.fromkeys(_KINDS, _RATES))), "models", _MEASURE)
    names = list(measured)
    figure = Figure(figsize=(9.6, 1.4 + 0.38 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, title) in zip(panels, _PANELS, strict=True):
        low, median, high = _rates(list(measured.values()), kind)
        spread = [median - low, high - median]
        bars = axes.barh(range(len(names)), median, xerr=spread, color=SKY, ecolor=FRAME)
        axes.bar_label(bars, fmt="{:.3g}", padding=4, fontsize=9)
        axes.set_title(title, loc="left")
        axes.set_xlabel("samples a second")
        axes.set_yticks(range(len(names)), names)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        open_frame(axes, grid=None)
    panels[0].invert_yaxis()
    return figure


def _rates(entries: Sequence[Mapping[str, Any]], kind: str) -> Float[np.ndarray, "3 n"]:
    """Lowest, median and highest samples a second of each entry."""
    rates = [entry[kind]["samples_per_second"] for entry in entries]
    return np.array([[float(rate[key]) for rate in rates] for key in ("low", "median", "high")])


def roofline(points: Sequence[Mapping[str, Any]], peak_flops: float, peak_bytes: float) -> Figure:
    """Operations a second against operations a byte, with the limits of the machine.

    Args:
        points: `model`, `kind` (`train` or `infer`), `flops_per_byte` and `flops_per_second`, as
            `efficiency.measure.intensities` returns them.
        peak_flops: Operations a second of a large matrix product on this machine.
        peak_bytes: Memory bandwidth of this machine in bytes a second.

    Raises:
        DataError: There is no point.
    """
    if not points:
        raise DataError("points: found none, expected at least one; time a model first")
    check_value(points, list_of(_INTENSITY), "points", _MEASURE)
    figure, axes = one_panel(9.6, 4.6)
    ridge = peak_flops / peak_bytes
    xs = [point["flops_per_byte"] for point in points]
    ends = np.array([min(*xs, ridge) / 3, max(*xs, ridge) * 3])
    roof = np.array([ends[0], ridge, ends[1]])
    axes.plot(roof, np.minimum(roof * peak_bytes, peak_flops) / 1e9, color=BLACK, linewidth=1.8)
    axes.annotate(
        f"memory: {peak_bytes / 1e9:.3g} GB/s",
        (ends[0] * 1.2, ends[0] * 1.2 * peak_bytes / 1e9),
        xytext=(8, 0),
        textcoords="offset points",
        va="top",
    )
    axes.annotate(
        f"products: {peak_flops / 1e9:.3g} GFLOP/s",
        (ends[1], peak_flops / 1e9),
        xytext=(0, 6),
        textcoords="offset points",
        ha="right",
    )
    _draw_rates(axes, points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=peak_flops / 1e9 * 2.5)
    axes.set_xlabel("operations in products a byte read or written (FLOP/B)")
    axes.set_ylabel("GFLOP/s")
    label_powers(axes.xaxis)
    label_powers(axes.yaxis)
    open_frame(axes, grid="both")
    outside_legend(figure, axes, "center right", columns=1)
    return figure


def _draw_rates(axes: Axes, points: Sequence[Mapping[str, Any]]):
    """Draws a color for each model, filled for training."""
    names = list(dict.fromkeys(point["model"] for point in points))
    kinds = {kind: title.lower() for kind, title in _PANELS}
    for point in points:
        color = COLORS[names.index(point["model"]) % len(COLORS)]
        axes.plot(
            point["flops_per_byte"],
            point["flops_per_second"] / 1e9,
            "o",
            markersize=9,
            markeredgewidth=2,
            color=color,
            markerfacecolor=color if point["kind"] == "train" else "white",
            label=f"{point['model']}, {kinds[point['kind']]}",
        )


def sweep_lines(points: Sequence[Mapping[str, Any]], axis: str) -> Figure:
    """Cost of a sample against a setting, a line for each model; numbers have logarithmic axes.

    Args:
        points: For every value and model `axis`, `model` and by kind `samples_per_second` and
            `temporary_bytes_per_sample` (None if unknown), as `benchmark --sweep` writes them.
        axis: Name of the setting that is varied.

    Raises:
        DataError: There is no point, or points have another format.
    """
    if not points:
        raise DataError("points: found none, expected at least one; run the benchmark's sweep")
    check_value(axis, text(100), "axis", _MEASURE)
    shape = {"model": text(), axis: _axis, **dict.fromkeys(_KINDS, _COSTS)}
    check_value(points, list_of(record(shape)), "sweep", _MEASURE)
    names = list(dict.fromkeys(point["model"] for point in points))
    values = list(dict.fromkeys(point[axis] for point in points))
    numbers = not any(isinstance(value, str) for value in values)
    if not numbers and not all(isinstance(value, str) for value in values):
        raise DataError(f"sweep: found {axis} {values}, expected numbers alone or names alone")
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, (kind, title) in enumerate(_PANELS):
        for i, name in enumerate(names):
            own = [point for point in points if point["model"] == name]
            _draw_costs(panels[:, column], own, axis, kind, _LOOKS[i % len(_LOOKS)], name)
        panels[0, column].set_title(f"{title}: milliseconds a sample", loc="left")
        panels[1, column].set_title(f"{title}: temporary MB a sample", loc="left")
        panels[1, column].set_xlabel(axis)
    for axes in panels.ravel():
        if numbers:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(map(_drawn, values)), [str(value) for value in values])
            axes.minorticks_off()
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        label_powers(axes.yaxis, (1, 2, 5) if high < 300 * low else (1,))
        open_frame(axes, grid="both")
    outside_legend(figure, panels[0, 0], "upper right", columns=min(len(names), 5))
    return figure


def _drawn(value: str | int | float) -> str | float:
    """A name, or a number as a float, since matplotlib takes no integers of more than 64 bits."""
    return value if isinstance(value, str) else float(value)


def _draw_costs(
    panels: np.ndarray,
    points: Sequence[Mapping[str, Any]],
    axis: str,
    kind: str,
    look: Mapping[str, str],
    name: str,
):
    """Draws time with its spread in the upper panel, temporary memory in the lower."""
    values = [_drawn(point[axis]) for point in points]
    slow, typical, fast = 1e3 / _rates(points, kind)
    panels[0].errorbar(
        values, typical, [typical - fast, slow - typical], capsize=3, label=name, **look
    )
    sizes = [point[kind]["temporary_bytes_per_sample"] for point in points]
    megabytes = [float("nan") if size is None else size / 1e6 for size in sizes]
    panels[1].plot(values, megabytes, label=name, **look)
