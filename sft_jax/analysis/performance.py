"""Figures of measured speed: models side by side, and cost along a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sft_jax.analysis.plots import BLACK, CHANNEL_COLORS, FRAME
from sft_jax.types import DataError

_PANELS = (("train", "Training"), ("infer", "Inference"))


def throughput_bars(measured: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Samples a second in training and inference, a bar a model with its lowest and highest round.

    Args:
        measured: by model `{kind: {"samples_per_second": {"median", "low", "high"}}}`, kinds
            `train` and `infer`, as `benchmark --json` writes them.

    Raises:
        DataError: there is no model.
    """
    if not measured:
        raise DataError("measured: found no model, expected at least one; run the benchmark")
    names = list(measured)
    figure = Figure(figsize=(9.6, 1.4 + 0.38 * len(names)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, title) in zip(panels, _PANELS, strict=True):
        rates = [measured[name][kind]["samples_per_second"] for name in names]
        medians = [rate["median"] for rate in rates]
        spread = [
            [rate["median"] - rate["low"] for rate in rates],
            [rate["high"] - rate["median"] for rate in rates],
        ]
        colors = [CHANNEL_COLORS[i % len(CHANNEL_COLORS)] for i in range(len(names))]
        axes.barh(range(len(names)), medians, xerr=spread, color=colors, ecolor=FRAME, height=0.7)
        for i, rate in enumerate(rates):
            axes.annotate(
                f"{rate['median']:.3g}",
                (rate["high"], i),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_title(title, loc="left")
        axes.set_xlabel("samples a second")
        axes.set_yticks(range(len(names)), names)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure


def sweep_lines(table: Sequence[Mapping[str, Any]], axis: str) -> Figure:
    """Cost of a sample against a setting, a line a model; both scales logarithmic for numbers.

    Args:
        table: a row for every value and model: `axis`, `model`, and columns of costs.
        axis: the setting that is varied.

    Raises:
        DataError: there is no row.
    """
    if not table:
        raise DataError("table: found no row, expected at least one; run the benchmark's sweep")
    columns = [key for key in table[0] if key not in (axis, "model")]
    names = list(dict.fromkeys(row["model"] for row in table))
    figure = Figure(figsize=(9.6, 3.4 * ((len(columns) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(columns) + 1) // 2, 2, sharex=True, squeeze=False).ravel()
    numbers = all(isinstance(row[axis], int | float) for row in table)
    for axes, column in zip(panels, columns, strict=False):
        for i, name in enumerate(names):
            own = [row for row in table if row["model"] == name]
            color = CHANNEL_COLORS[i % len(CHANNEL_COLORS)]
            values = [row[axis] for row in own]
            axes.plot(values, [row[column] for row in own], marker="o", color=color, label=name)
        if numbers:
            values = sorted({row[axis] for row in table})
            axes.set_xscale("log", base=2)
            axes.set_xticks(values, [str(value) for value in values])
        axes.set_yscale("log")
        axes.set_title(column, loc="left")
        axes.set_xlabel(axis)
        axes.grid(True, which="major", color=BLACK, alpha=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(names), frameon=False)
    return figure
