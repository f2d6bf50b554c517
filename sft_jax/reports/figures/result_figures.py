"""Figures of results, each one panel as wide as a phone; pages put them side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from sft_jax.reports.figures.style import (
    BLUE,
    COLORS,
    FRAME,
    NARROW,
    RUST,
    SKY,
    label_powers,
    one_panel,
    open_frame,
    outside_legend,
    stacked_panels,
)
from sft_jax.tasks.blocks import Intervals, Lines, Scatter
from sft_jax.types import Array, DataError

# Beside other curves, bins with a smaller share of the samples are left out.
_LEAST_SHARE = 0.01
_COLORS = COLORS[:-1]
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^")


class Band(NamedTuple):
    """A curve over runs: steps `[e]`, mean `[e]`, standard deviation `[e]` (0 for one run)."""

    steps: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


class Point(NamedTuple):
    """Cost and score of a setting; `deviation` is None if it is not known."""

    label: str
    cost: float
    score: float
    deviation: float | None = None


def lines(plot: Lines) -> Figure:
    """Curves over a common axis; a single one with a histogram of its counts below.

    Raises:
        DataError: There is no curve.
    """
    _check_some("curves", plot.curves)
    alone = len(plot.curves) == 1 and bool(plot.counts)
    heights = (3.6, 0.9) if alone else (4.2,)
    figure, panels = stacked_panels(NARROW, heights, 0.3)
    axes = panels[0]
    for i, (name, (x, y)) in enumerate(plot.curves.items()):
        look: dict[str, Any] = {**_look(i), "marker": ""}
        if name in plot.counts:
            share = plot.counts[name] / plot.counts[name].sum()
            common = share > (0 if alone else _LEAST_SHARE)
            x, y, share = x[common], y[common], share[common]
            if alone:  # the size of a dot says how many samples it stands for
                axes.scatter(x, y, 8 + 300 * share, color=BLUE, linewidth=0, zorder=3)
        axes.plot(x, y, label=name, linewidth=1.6, **look)
    if plot.diagonal:
        axes.plot([0, 1], [0, 1], color=FRAME, linewidth=1, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(plot.y_label)
    open_frame(axes)
    if alone:
        _draw_histogram(panels[1], next(iter(plot.counts.values())))
    elif len(plot.curves) > 1:
        outside_legend(figure, axes)
    panels[-1].set_xlabel(plot.x_label)
    return figure


def scatter(plot: Scatter) -> Figure:
    """Predicted against true numbers above a histogram of their differences.

    Raises:
        DataError: There is no sample.
    """
    _check_some("samples", {str(i): i for i in range(min(len(plot.x), 1))})
    figure = Figure(figsize=(NARROW, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": (3.6, 1.2)})
    ends = [min(plot.x.min(), plot.y.min()), max(plot.x.max(), plot.y.max())]
    above.plot(ends, ends, color=FRAME, linewidth=1, linestyle="--")
    above.scatter(plot.x, plot.y, 12, color=BLUE, alpha=0.5, linewidth=0)
    above.set(xlabel=plot.x_label, ylabel=plot.y_label)
    below.hist(plot.y - plot.x, bins=30, color=SKY)
    below.axvline(0, color=FRAME, linewidth=1)
    below.set(xlabel="predicted minus true", ylabel="samples")
    for axes in (above, below):
        open_frame(axes)
    return figure


def _draw_histogram(axes: Axes, counts: np.ndarray):
    """Share of the samples in each of equal bins from 0 to 1."""
    width = 1 / len(counts)
    edges = np.arange(len(counts)) * width
    axes.bar(edges, counts / counts.sum(), 0.9 * width, align="edge", color=SKY)
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    open_frame(axes, grid=None)


def token_frequency(share: Float[Array, " t"], expected: float, title: str) -> Figure:
    """How often each token is kept, in order of time.

    Args:
        share: Share of samples that keep each token.
        expected: Share if every token were equally likely.
        title: Title of the figure.
    """
    figure, axes = one_panel(NARROW, 2.5)
    axes.bar(np.arange(len(share)), share, 0.85, color=BLUE)
    axes.axhline(expected, color=RUST, linewidth=1.2, linestyle="--")
    key = f"- - all alike: {expected:.0%}"
    axes.text(1, 1.03, key, color=RUST, ha="right", va="bottom", transform=axes.transAxes)
    axes.set_title(title, loc="left")
    axes.set(xlabel="token, in order of time", ylabel="samples that keep it")
    axes.set_xlim(-0.7, len(share) - 0.3)
    axes.set_ylim(0, max(1.15 * expected, 1.08 * float(np.max(share)), 0.02))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    open_frame(axes)
    return figure


def intervals(plot: Intervals) -> Figure:
    """Shares with their intervals, the first row on top.

    Raises:
        DataError: There is no row.
    """
    _check_some("rows", plot.rows)
    figure, axes = _rows(list(plot.rows), plot.title)
    scale = 100 if plot.difference else 1
    for i, row in enumerate(plot.rows.values()):
        if row["low"] is not None and row["high"] is not None:
            ends = [scale * row["low"], scale * row["high"]]
            axes.plot(ends, [i, i], color=BLUE, linewidth=2.2)
        axes.plot(scale * row["value"], i, "o", color=BLUE, markersize=6.5)
    if plot.difference:
        axes.axvline(0, color=FRAME, linewidth=1)
        axes.set_xlabel("percentage points")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    return figure


def setting_dots(
    labels: Sequence[str],
    points: Sequence[Real[Array, " _"]],
    deviations: Sequence[float | None],
    title: str,
) -> Figure:
    """Mean of each setting with its deviation as a bar, and a faint dot for every fold.

    Args:
        labels: Names of the settings, the first one on top.
        points: Score of each setting on each fold.
        deviations: Deviation of each mean, or None.
        title: Title of the figure.
    """
    figure, axes = _rows(labels, title)
    for i, (own, deviation) in enumerate(zip(points, deviations, strict=True)):
        mean = float(np.mean(own))
        axes.plot(own, np.full(len(own), i), "o", color=SKY, markersize=4, alpha=0.6)
        if deviation is not None:
            axes.plot([mean - deviation, mean + deviation], [i, i], color=BLUE, linewidth=2.2)
        axes.plot(mean, i, "o", color=BLUE, markersize=6.5)
    return figure


def condition_dots(
    labels: Sequence[str], scores: Mapping[str, Sequence[float | None]], title: str
) -> Figure:
    """Score of each setting under several conditions, a marker for each.

    Args:
        labels: Names of the settings, the first one on top.
        scores: Score of each setting by condition; None if it is not known.
        title: Title of the figure.
    """
    figure, axes = _rows(labels, title, below=0.27 * -(-len(scores) // 2))
    for i, (condition, values) in enumerate(scores.items()):
        known = {j: value for j, value in enumerate(values) if value is not None}
        look: dict[str, Any] = {**_look(i), "linestyle": "none"}
        axes.plot(list(known.values()), list(known), label=condition, markersize=6, **look)
    outside_legend(figure, axes)
    return figure


def bands(curves: Mapping[str, Band], title: str, x_label: str, as_share: bool) -> Figure:
    """Mean over the runs of each setting, with a band of one deviation to both sides.

    Raises:
        DataError: There is no curve.
    """
    _check_some("curves", curves)
    legend = 0.24 * -(-len(curves) // 2) if len(curves) > 1 else 0
    figure, axes = one_panel(NARROW, 3.0 + legend)
    for i, (name, band) in enumerate(curves.items()):
        look: dict[str, Any] = {**_look(i), "marker": ""}
        axes.plot(band.steps, band.mean, label=name, linewidth=1.6, **look)
        low, high = band.mean - band.deviation, band.mean + band.deviation
        axes.fill_between(band.steps, low, high, color=look["color"], alpha=0.13, linewidth=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if as_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(bottom=0)
    open_frame(axes)
    if len(curves) > 1:
        outside_legend(figure, axes)
    return figure


def frontier(points: Sequence[Point]) -> list[int]:
    """Positions of the points that no other point beats in cost and score, in order of cost.

    Of equal points, the first counts.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].score, i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i].score > points[kept[-1]].score:
            kept.append(i)
    return kept


def pareto(points: Sequence[Point], title: str, cost_label: str) -> Figure:
    """Score against cost on a logarithmic scale; a line joins the points on the frontier.

    Raises:
        DataError: There is no point.
    """
    _check_some("points", points)
    figure, axes = one_panel(NARROW, 4.0)
    best = frontier(points)
    edge = np.array([[points[i].cost, points[i].score] for i in best])
    axes.step(edge[:, 0], edge[:, 1], where="post", color=BLUE, linewidth=1.2, alpha=0.6)
    for i, point in enumerate(points):
        color = BLUE if i in best else FRAME
        look: dict[str, Any] = {"fmt": "o", "color": color, "markersize": 6, "elinewidth": 1}
        axes.errorbar(point.cost, point.score, point.deviation, **look)
    axes.set_xscale("log")
    axes.margins(x=0.16, y=0.1)
    low, high = axes.get_xlim()
    label_powers(axes.xaxis, (1, 2, 5) if high < 100 * low else (1,))
    if high <= 8 * low:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_title(title, loc="left")
    axes.set_xlabel(cost_label)
    open_frame(axes)
    _label_points(figure, axes, points)
    return figure


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point]):
    """Writes names beside points; a name without a free place is left out."""
    figure.draw_without_rendering()
    at = axes.transData.transform([(point.cost, point.score) for point in points]).tolist()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    left, right = axes.bbox.x0, figure.bbox.x1
    for point, (x, y) in zip(points, at, strict=True):
        text = axes.text(point.cost, point.score, point.label, fontsize=9, parse_math=False)
        box = text.get_window_extent()
        width, height = box.width, box.height
        spots = [(8, -height / 2), (-8 - width, -height / 2)]
        spots += [(sx, sy) for sy in (8, -8 - height) for sx in (-width / 2, 4, -4 - width)]
        spots += [(8, step * height) for step in (1, -2, 2, -3)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in spots]
        inside = [box for box in boxes if left <= box[0] and box[2] <= right]
        free = next((box for box in inside if not any(_overlap(box, t) for t in taken)), None)
        if free is None:
            text.remove()
            continue
        taken.append(free)
        x, y = axes.transData.inverted().transform(free[:2])
        text.set_position((x, y))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def _rows(labels: Sequence[str], title: str, below: float = 0) -> tuple[Figure, Axes]:
    """A panel of shares with a row for each label, from top to bottom."""
    figure, axes = one_panel(NARROW, 0.95 + 0.3 * len(labels) + below)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.06)
    open_frame(axes, grid="both")
    axes.spines["left"].set_visible(False)
    return figure, axes


def _look(i: int) -> dict[str, str]:
    """Color, dashes and marker of the `i`-th curve; dashes and markers vary once colors repeat."""
    turn = i // len(_COLORS)
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "marker": _MARKERS[turn % len(_MARKERS)],
    }


def _check_some(what: str, given: Sequence | Mapping):
    if not given:
        raise DataError(f"{what}: found none, expected at least one; leave the figure out")
