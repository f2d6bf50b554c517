"""Figures of a run: learning curves, confusion matrix, and which tokens a pool kept.

Every function returns a `matplotlib.figure.Figure` that no global state knows of; `save` writes it.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sft_jax.types import Array, DataError

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
CHANNEL_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
KEPT, FRAME, ABSENT = "#F2DC9B", "#555555", "#E8E8E8"
RUST = "#A34700"  # vermilion, dark enough for text
DPI = 120
NARROW = 4.6  # inches: a panel that can still be read on a phone
_CURVES = {"loss": "Cross-entropy (nats)", "top1": "Top-1 accuracy"}
# Past these a cell has no room for its text.
CELLS_WITH_COUNTS, CELLS_WITH_SHARES = 25, 14


def save(figure: Figure, path: Path) -> Path:
    """Writes `figure` as PNG at 120 dots an inch and returns `path`."""
    figure.savefig(path, dpi=DPI, pil_kwargs={"optimize": True})
    return path


def learning_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and top-1 of training and validation against the optimizer step.

    Args:
        records: lines of `metrics.jsonl`: `kind` ("train" or "valid"), `step`, `loss`, `top1`.

    Raises:
        DataError: there is no record.
    """
    if not records:
        raise DataError("records: found none, expected at least one train or valid record")
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, metric in zip(panels, _CURVES, strict=True):
        _draw_curve(axes, records, metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return figure


def learning_curve(records: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """One panel of `learning_curves`, as wide as a phone.

    Args:
        records: see `learning_curves`.
        metric: "loss" or "top1".
    """
    figure = Figure(figsize=(NARROW, 3.4), layout="constrained")
    axes = figure.subplots()
    _draw_curve(axes, records, metric)
    axes.legend(loc="best", frameon=False)
    return figure


def confusion_matrix(matrix: Int[Array, "c c"], class_names: Sequence[str]) -> Figure:
    """Shares of each true class (row), with the counts they come from while there is room.

    A class without samples is a grey row.

    Args:
        matrix: counts, row = true class, column = predicted class.
        class_names: name of each class.

    Raises:
        DataError: there is not one name a class.
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
    # Where shares stand in the cells, nobody needs a bar that explains their shades.
    with_share = num_classes <= CELLS_WITH_SHARES
    beside = 0.085 * longest_row + (0.5 if with_share else 2.0)
    figure = Figure(figsize=(side + beside, side + below), layout="constrained")
    axes = figure.subplots()
    # From nothing to blue, so that an empty cell has the colour of the page.
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
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class, in the same order" if small else "predicted class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if not with_share:
        bar = figure.colorbar(image, ax=axes, aspect=25, format=PercentFormatter(1.0))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
    return figure


def kept_tokens(
    signals: Mapping[str, Float[Array, "_ _"]],
    kept: Mapping[str, Int[Array, " _"]],
    spans: Mapping[str, Sequence[Sequence[int]]],
    sampling_rate: float,
    title: str,
    saliency: Mapping[str, Real[Array, " _"]] | None = None,
) -> Figure:
    """One panel a modality: its channels over time, and shaded where a token was kept.

    Args:
        signals: `{m: [t, f]}` time steps and channels.
        kept: `{m: [k]}` indices of the kept tokens, -1 in empty slots.
        spans: `{m: [(start, stop), ...]}` time steps that each token of the modality covers.
        sampling_rate: time steps a second.
        title: what the recording is.
        saliency: `{m: [k]}` saliency of the kept tokens, drawn as bars below the panel; modalities
            may be left out.

    Raises:
        DataError: the modalities disagree, or a kept token is none of the spans.
    """
    _check_tokens(signals, kept, spans, saliency)
    saliency = saliency or {}
    rows = [(m, what) for m in signals for what in ("signal", "saliency")[: 1 + (m in saliency)]]
    heights = [2.1 if what == "signal" else 0.7 for _, what in rows]
    figure = Figure(figsize=(9.6, sum(heights) + 1.0), layout="constrained")
    panels = figure.subplots(
        len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axes, (name, what) in zip(panels, rows, strict=True):
        slots = np.flatnonzero(np.asarray(kept[name]) >= 0)
        # A time step stands in the middle of the interval it is drawn over.
        seconds = (np.reshape(spans[name], (-1, 2)) - 0.5) / sampling_rate
        chosen = seconds[np.asarray(kept[name])[slots]]
        if what == "signal":
            as_lines = _draw_signal(axes, np.asarray(signals[name]), sampling_rate)
            for start, stop in merged(chosen.tolist()):
                # Under the lines, but over an image, which has to show through.
                look = {"alpha": 0.75, "zorder": 0} if as_lines else {"alpha": 0.45}
                axes.axvspan(start, stop, color=KEPT, linewidth=0, **look)
            axes.set_title(f"{name}: {len(slots)} of {len(spans[name])} tokens kept", loc="left")
        else:
            heights_of = np.asarray(saliency[name])[slots]
            width = chosen[:, 1] - chosen[:, 0]
            axes.bar(chosen[:, 0], heights_of, width, align="edge", color=FRAME, linewidth=0)
            axes.set_ylabel("saliency", rotation=0, ha="right", va="center")
            axes.set_yticks([])
        open_frame(axes, grid=False)
    longest = max(len(signal) for signal in signals.values())
    panels[-1].set_xlim(-0.5 / sampling_rate, (longest - 0.5) / sampling_rate)
    panels[-1].set_xlabel("time (s)" if sampling_rate != 1 else "time step")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


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
    if channels > len(CHANNEL_COLORS):
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
    for channel, color in zip(range(channels), CHANNEL_COLORS, strict=False):
        axes.plot(seconds, signal[:, channel], color=color, linewidth=1.2)
    axes.set_ylabel("signal")
    handles: list[Artist] = [
        Line2D([], [], color=CHANNEL_COLORS[c], linewidth=1.8) for c in range(channels)
    ]
    labels = [f"channel {c + 1}" for c in range(channels)]
    handles.append(Patch(color=KEPT, alpha=0.75))
    axes.legend(
        handles, [*labels, "kept"], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False
    )
    return True


def _draw_curve(axes: Axes, records: Sequence[Mapping[str, Any]], metric: str):
    styles: dict[str, dict[str, Any]] = {
        "train": {"label": "training", "color": SKY, "linewidth": 1.2},
        "valid": {"label": "validation", "color": VERMILION, "linewidth": 1.8, "marker": "o"},
    }
    for kind, style in styles.items():
        chosen = sorted((r for r in records if r["kind"] == kind), key=lambda r: r["step"])
        if chosen:
            steps, values = [r["step"] for r in chosen], [r[metric] for r in chosen]
            axes.plot(steps, values, markersize=3.5, **style)
            if kind == "valid":
                _mark_best(axes, steps, values, lowest=metric == "loss")
    axes.set_title(_CURVES[metric], loc="left", y=1.09)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    open_frame(axes)
    if metric == "loss":
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _write_cells(axes: Axes, counts: np.ndarray, share: np.ndarray, with_share: bool):
    for row, column in np.argwhere(counts > 0):
        text = f"{counts[row, column]}"
        if with_share:
            text = f"{share[row, column]:.0%}\n({text})"
        color = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)


def _mark_best(axes: Axes, steps: list[int], values: list[float], lowest: bool):
    known = np.asarray(values, np.float64)
    if np.isnan(known).all():
        return
    best = int(np.nanargmin(known) if lowest else np.nanargmax(known))
    axes.plot(steps[best], values[best], "o", markersize=9, color=VERMILION, fillstyle="none")
    text = f"lowest: {known[best]:.3f}" if lowest else f"highest: {known[best]:.1%}"
    # Above the data, where it cannot lie on a curve.
    axes.text(
        0,
        1.03,
        f"validation {text} at step {steps[best]}",
        transform=axes.transAxes,
        color=RUST,
        va="bottom",
    )


def open_frame(axes: Axes, grid: bool = True):
    """Leaves the two axes of a panel, and lines across it where they help."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    if grid:
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)


def _check_tokens(
    signals: Mapping[str, Array],
    kept: Mapping[str, Array],
    spans: Mapping[str, Sequence[Sequence[int]]],
    saliency: Mapping[str, Array] | None,
):
    saliency = saliency or {}
    for what, given in (("kept", kept), ("spans", spans), ("saliency", {**signals, **saliency})):
        if set(given) != set(signals):
            raise DataError(
                f"{what}: found modalities {sorted(given)}, expected those of the signals, "
                f"{sorted(signals)}; give one entry a modality"
            )
    for name in signals:
        indices = np.asarray(kept[name])
        if indices.size and not -1 <= indices.min() <= indices.max() < len(spans[name]):
            raise DataError(
                f"kept[{name!r}]: found tokens {indices.min()} to {indices.max()}, expected -1 to "
                f"{len(spans[name]) - 1}; give the span of every token of the modality"
            )
        if name in saliency and len(saliency[name]) != len(indices):
            raise DataError(
                f"saliency[{name!r}]: found {len(saliency[name])} values, expected one for each of "
                f"{len(indices)} kept tokens"
            )
