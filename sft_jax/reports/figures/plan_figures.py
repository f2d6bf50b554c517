"""Figures of plans, from the numbers that `python -m sft_jax.plan --json=...` writes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sft_jax.files.json_files import check_value, integer, map_of, number, record
from sft_jax.reports.figures.style import (
    BLUE,
    FRAME,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    label_powers,
    one_panel,
    open_frame,
    outside_legend,
)
from sft_jax.types import DataError

_PARTS = {
    "parameters": BLUE,
    "optimizer": SKY,
    "batch": GREEN,
    "padding": PURPLE,
    "temporary": ORANGE,
    "program": FRAME,
}
_SPENT = {"products": BLUE, "memory": ORANGE, "network": GREEN}
_PLAN = "plan again with `python -m sft_jax.plan --json=...`"
_BYTES = number(0, 1e30)
_MEMORY = record(dict.fromkeys((*_PARTS, "capacity"), _BYTES))
_MODELS = map_of(record({"models": map_of(record({}))}))
_TIMES = map_of(record(dict.fromkeys(_SPENT, number(0, 1e30))))


def memory_bars(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Memory of a step on one chip, a bar for each model, with the chip's capacity if it is known.

    Args:
        models: `{"memory": {"parameters", ..., "capacity"}}` in bytes by name, as in `models` of
            `efficiency.plans.to_json`.

    Raises:
        DataError: There is no model.
    """
    if not models:
        raise DataError("models: found none, expected at least one; plan one first")
    check_value(models, map_of(record({"memory": _MEMORY})), "models", _PLAN)
    figure, axes = one_panel(9.6, 1.5 + 0.42 * len(models))
    left = np.zeros(len(models))
    for part, color in _PARTS.items():
        sizes = np.array([model["memory"][part] for model in models.values()], float) / 1e6
        axes.barh(range(len(models)), sizes, left=left, color=color, height=0.7, label=part)
        left += sizes
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:,.0f} MB", va="center")
    capacity = next(iter(models.values()))["memory"]["capacity"] / 1e6
    if capacity:
        axes.axvline(capacity, color=VERMILION, linewidth=1.8, label="memory of a chip")
    axes.set_yticks(range(len(models)), list(models))
    axes.invert_yaxis()
    axes.set_xlabel("MB on one chip at the step's worst moment")
    axes.margins(x=0.14)
    open_frame(axes, grid=None)
    outside_legend(figure, axes, "upper left", columns=7)
    return figure


def time_points(topologies: Mapping[str, Mapping[str, Any]], model: str) -> Figure:
    """Lower bounds of the time of a step, for compute, memory and network of each topology.

    Args:
        topologies: By name `{"chips", "models": {model: {"seconds_at_best", "batch_size"}}}`, as in
            `topologies` of `efficiency.plans.to_json`; those without published speeds are left out.
        model: Name of the model.

    Raises:
        DataError: No topology has a time to draw.
    """
    check_value(topologies, _MODELS, "topologies", _PLAN)
    times = {
        name: entry["models"][model].get("seconds_at_best")
        for name, entry in topologies.items()
        if model in entry["models"]
    }
    times = {name: spent for name, spent in times.items() if spent}
    if not times:
        raise DataError(
            f"topologies: found no times of {model!r} in {', '.join(topologies) or 'none'}, "
            "expected at least one; plan for chips whose speeds are published, not for cpu"
        )
    check_value(times, _TIMES, "seconds_at_best", _PLAN)
    sizes = {name: topologies[name]["models"][model].get("batch_size") for name in times}
    check_value(sizes, map_of(integer()), "batch_size", _PLAN)
    figure, axes = one_panel(9.6, 4.0)
    places = np.arange(len(times))
    for (what, color), marker in zip(_SPENT.items(), "osD", strict=True):
        heights = [1e3 * spent[what] or np.nan for spent in times.values()]
        axes.plot(places, heights, marker, color=color, markersize=10, label=what)
    axes.set_yscale("log")
    label_powers(axes.yaxis)
    labels = [f"{name}\nbatch {size}" for name, size in sizes.items()]
    axes.set_xticks(places, labels)
    axes.set_ylabel("least time of a step (ms)")
    open_frame(axes)
    outside_legend(figure, axes, "upper right", columns=3)
    return figure
