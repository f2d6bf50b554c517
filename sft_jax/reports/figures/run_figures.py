"""Figures of a run: learning curves, confusion matrix, and the tokens that a pool kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sft_jax.reports.figures.style import (
    ABSENT,
    BLUE,
    COLORS,
    FRAME,
    KEPT,
    NARROW,
    RUST,
    SKY,
    VERMILION,
    one_panel,
    open_frame,
    outside_legend,
    stacked_panels,
)
from sft_jax.runs.example_file import Example
from sft_jax.tasks.base import Metric
from sft_jax.types import Array, DataError

# Above these numbers of classes, the cells of a confusion matrix have no room for text.
CELLS_WITH_COUNTS, CELLS_WITH_SHARES = 25, 14


def learning_curves(records: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> Figure:
    """Metrics of training and validation against the optimizer step, a panel for each metric.

    Args:
        records: Lines of `metrics.jsonl`, as `runs.metric_log.read_metrics` reads them.
        metrics: Metrics to draw.

    Raises:
        DataError: There is no record.
    """
    if not records:
        raise DataError("records: found none, expected at least one train or valid record")
    figure = Figure(figsize=(NARROW * len(metrics), 3.8), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharex=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_curve(axes, records, metric)
    outside_legend(figure, panels[0], "upper right")
    return figure


def confusion_matrix(
    matrix: Int[Array, "c c"],
    class_names: Sequence[str],
    *,
    x_label: str = "predicted class",
    y_label: str = "true class",
) -> Figure:
    """Shares of each row, with the counts they come from if there is room.

    A row without samples is grey.

    Args:
        matrix: Counts, row = true class, column = predicted class.
        class_names: Name of each class.
        x_label: Meaning of the columns.
        y_label: Meaning of the rows.

    Raises:
        DataError: The number of names differs from the number of classes.
    """
    counts = np.asarray(matrix)
    num_classes = len(counts)
    if len(class_names) != num_classes:
        raise DataError(
            f"class_names: found {len(class_names)}, expected {num_classes}, one a row of the "
            "matrix; take them from data.json"
        )
    support = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    small = num_classes > CELLS_WITH_COUNTS
    cell = 0.14 if small else 0.36 if num_classes > CELLS_WITH_SHARES else 0.56
    rows = list(class_names)
    if not small:
        rows = [f"{name}  (n={n})" for name, n in zip(rows, support[:, 0], strict=True)]
    longest, longest_row = max(map(len, class_names)), max(map(len, rows))
    side = max(num_classes * cell, 2.2)
    slanted = 0.095 * longest > cell
    below = 0.5 if small else 0.8 + 0.06 * longest * slanted
    # A color bar is only needed if the cells have no text.
    with_share = num_classes <= CELLS_WITH_SHARES
    beside = 0.085 * longest_row + (0.5 if with_share else 2.0)
    figure, axes = one_panel(side + beside, side + below)
    # From transparent to blue, so that an empty cell has the color of the page.
    shades = LinearSegmentedColormap.from_list("share", [to_rgba(BLUE, 0), to_rgba(BLUE, 1)])
    cmap = shades.with_extremes(bad=ABSENT)
    image = axes.imshow(share, cmap=cmap, vmin=0, vmax=1, aspect="equal")
    if not small:
        _write_cells(axes, counts, share, with_share)
    axes.set_yticks(range(num_classes), rows, fontsize=9 if small else 10)
    turn: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    )
    axes.set_xticks([] if small else range(num_classes), [] if small else class_names, **turn)
    axes.set_ylabel(y_label)
    axes.set_xlabel(f"{x_label}, in the same order" if small else x_label)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if not with_share:
        bar = figure.colorbar(image, ax=axes, aspect=25, format=PercentFormatter(1.0))
        bar.set_label(f"share of the {y_label}")
        bar.outline.set_visible(False)
    return figure


def kept_tokens(example: Example) -> Figure:
    """Channels of each modality over time, shaded where a token was kept.

    Saliency, where known, is drawn as bars below the panel of its modality.

    Raises:
        DataError: The modalities disagree, or a kept token has no span.
    """
    _check_tokens(example)
    signals, saliency, rate = example.signals, example.saliency, example.sampling_rate
    rows = [(m, what) for m in signals for what in ("signal", "saliency")[: 1 + (m in saliency)]]
    heights = [2.1 if what == "signal" else 0.7 for _, what in rows]
    figure, panels = stacked_panels(9.6, heights, 1.0)
    for axes, (name, what) in zip(panels, rows, strict=True):
        seconds = token_seconds(example, name)
        slots = np.flatnonzero(example.kept[name] >= 0)
        chosen = seconds[example.kept[name][slots]]
        if what == "signal":
            as_lines = _draw_signal(axes, signals[name], rate)
            for start, stop in merged(chosen.tolist()):
                # Under the lines, but over an image, which must show through.
                look = {"alpha": 0.75, "zorder": 0} if as_lines else {"alpha": 0.45}
                axes.axvspan(start, stop, color=KEPT, linewidth=0, **look)
            axes.set_title(f"{name}: {len(slots)} of {len(seconds)} tokens kept", loc="left")
        else:
            heights_of = saliency[name][slots]
            width = chosen[:, 1] - chosen[:, 0]
            axes.bar(chosen[:, 0], heights_of, width, align="edge", color=FRAME, linewidth=0)
            axes.set_ylabel("saliency", rotation=0, ha="right", va="center")
            axes.set_yticks([])
        open_frame(axes, grid=None)
    longest = max(len(signal) for signal in signals.values())
    panels[-1].set_xlim(-0.5 / rate, (longest - 0.5) / rate)
    panels[-1].set_xlabel("time (s)" if rate != 1 else "time step")
    figure.suptitle(example.title, x=0.01, ha="left", weight="bold")
    return figure


def token_seconds(example: Example, name: str) -> Float[np.ndarray, "tokens 2"]:
    """Interval of every token in seconds; a time step is drawn at the center of its interval."""
    return (example.spans[name] - 0.5) / example.sampling_rate


def merged(spans: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """The union of intervals `(start, stop)`, in order; touching ones are joined."""
    result: list[tuple[float, float]] = []
    for start, stop in sorted((start, stop) for start, stop in spans):
        if result and start <= result[-1][1] + 1e-9:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


def _draw_signal(axes: Axes, signal: np.ndarray, sampling_rate: float) -> bool:
    """Lines while colours tell the channels apart (true), an image beyond (false)."""
    length, channels = signal.shape
    if channels > len(COLORS):
        edges = (-0.5 / sampling_rate, (length - 0.5) / sampling_rate)
        axes.imshow(
            signal.T,
            extent=(*edges, 0.5, channels + 0.5),
            aspect="auto",
            origin="lower",
            cmap="Greys",
            alpha=0.75,
        )
        axes.set_ylabel("channel")
        return False
    seconds = np.arange(length) / sampling_rate
    for channel, color in zip(range(channels), COLORS, strict=False):
        axes.plot(seconds, signal[:, channel], color=color, linewidth=1.2)
    axes.set_ylabel("signal")
    handles: list[Artist] = [
        Line2D([], [], color=COLORS[c], linewidth=1.8) for c in range(channels)
    ]
    labels = [f"channel {c + 1}" for c in range(channels)]
    handles.append(Patch(color=KEPT, alpha=0.75))
    axes.legend(
        handles, [*labels, "kept"], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    return True


def _draw_curve(axes: Axes, records: Sequence[Mapping[str, Any]], metric: Metric):
    styles: dict[str, dict[str, Any]] = {
        "train": {"label": "training", "color": SKY, "linewidth": 1.2},
        "valid": {"label": "validation", "color": VERMILION, "linewidth": 1.8, "marker": "o"},
    }
    for kind, style in styles.items():
        known = [r for r in records if r["kind"] == kind and metric.name in r]
        if known:
            known.sort(key=lambda record: record["step"])
            steps, values = [r["step"] for r in known], [r[metric.name] for r in known]
            axes.plot(steps, values, markersize=3.5, **style)
            if kind == "valid":
                _mark_best(axes, steps, values, metric)
    axes.set_title(metric.title, loc="left", y=1.09)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    open_frame(axes)
    if metric.is_share:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_ylim(bottom=0)


def _write_cells(axes: Axes, counts: np.ndarray, share: np.ndarray, with_share: bool):
    for row, column in np.argwhere(counts > 0):
        text = f"{counts[row, column]}"
        if with_share:
            text = f"{share[row, column]:.0%}\n({text})"
        color = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)


def _mark_best(axes: Axes, steps: list[int], values: list[float], metric: Metric):
    known = np.asarray(values, np.float64)
    if np.isnan(known).all():
        return
    best = int(np.nanargmax(known) if metric.higher_is_better else np.nanargmin(known))
    axes.plot(steps[best], values[best], "o", markersize=9, color=VERMILION, fillstyle="none")
    which = "highest" if metric.higher_is_better else "lowest"
    shown = f"{known[best]:.1%}" if metric.is_share else f"{known[best]:.3f}"
    # Above the data, so that it does not overlap a curve.
    axes.text(
        0,
        1.03,
        f"validation {which}: {shown} at step {steps[best]}",
        transform=axes.transAxes,
        color=RUST,
        va="bottom",
    )


def _check_tokens(example: Example):
    signals, kept, spans = example.signals, example.kept, example.spans
    salient = {**signals, **example.saliency}
    for what, given in (("kept", kept), ("spans", spans), ("saliency", salient)):
        if set(given) != set(signals):
            raise DataError(
                f"{what}: found modalities {sorted(given)}, expected those of the signals, "
                f"{sorted(signals)}; give one entry a modality"
            )
    for name, indices in kept.items():
        if indices.size and not -1 <= indices.min() <= indices.max() < len(spans[name]):
            raise DataError(
                f"kept[{name!r}]: found tokens {indices.min()} to {indices.max()}, expected -1 to "
                f"{len(spans[name]) - 1}; give the span of every token of the modality"
            )
        if len(example.saliency.get(name, indices)) != len(indices):
            raise DataError(
                f"saliency[{name!r}]: found {len(example.saliency[name])} values, expected one for "
                f"each of {len(indices)} kept tokens"
            )
