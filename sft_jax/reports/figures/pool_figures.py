"""Figures of pools: their tokens on one recording, and accuracy against the number of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from sft_jax.reports.figures.run_figures import merged, token_seconds
from sft_jax.reports.figures.style import (
    COLORS,
    FRAME,
    one_panel,
    open_frame,
    outside_legend,
    stacked_panels,
)
from sft_jax.runs.example_file import Example
from sft_jax.types import DataError

_HEAT = "YlOrBr"
_ROW = 0.22  # height of a pool's row in inches


def saliency_shades(example: Example) -> Figure:
    """Channels of each modality over time, shaded by the saliency of each token.

    Saliency is drawn in units of its mean over tokens.

    Args:
        example: Recording of which every token was kept, so that the saliency of all is known.

    Raises:
        DataError: A token has no saliency.
    """
    names = list(example.signals)
    shares = {name: _relative_saliency(example, name) for name in names}
    low, high = np.percentile(np.concatenate(list(shares.values())), (0.5, 99.5))
    shade = ScalarMappable(Normalize(low, high), _HEAT)
    figure, panels = stacked_panels(9.6, [2.2] * len(names), 0.7)
    for axes, name in zip(panels, names, strict=True):
        for (start, stop), share in zip(token_seconds(example, name), shares[name], strict=True):
            axes.axvspan(start, stop, color=shade.to_rgba(share), alpha=0.85, linewidth=0)
        _draw_channels(axes, example, name)
        axes.set_title(name, loc="left")
    panels[-1].set_xlabel("time (s)")
    bar = figure.colorbar(shade, ax=panels, aspect=30, extend="both")
    bar.set_label("saliency (1 = mean of the tokens)")
    bar.outline.set_visible(False)
    figure.suptitle(example.title, x=0.01, ha="left", weight="bold")
    return figure


def kept_by_pool(examples: Mapping[str, Example]) -> Figure:
    """Channels of each modality over time, and below a row for each pool with the tokens it kept.

    Args:
        examples: The same recording by pool.

    Raises:
        DataError: There is no pool.
    """
    if not examples:
        raise DataError("examples: found none, expected at least one pool that selects tokens")
    first = next(iter(examples.values()))
    heights = [1.6, _ROW * len(examples)] * len(first.signals)
    figure, panels = stacked_panels(9.6, heights, 1.0)
    for above, below, name in zip(panels[::2], panels[1::2], first.signals, strict=True):
        _draw_channels(above, first, name)
        above.set_title(name, loc="left")
        for row, example in enumerate(examples.values()):
            kept = example.kept[name]
            spans = merged(token_seconds(example, name)[kept[kept >= 0]].tolist())
            below.broken_barh(
                [(start, stop - start) for start, stop in spans],
                (row - 0.35, 0.7),
                color=FRAME,
                linewidth=0,
            )
        below.set_yticks(range(len(examples)), list(examples))
        below.set_ylim(len(examples) - 0.4, -0.6)
        below.tick_params(axis="y", length=0)
        below.spines[["top", "right", "left"]].set_visible(False)
    panels[-1].set_xlabel("time (s)")
    figure.suptitle(first.title, x=0.01, ha="left", weight="bold")
    return figure


def accuracy_lines(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the number of tokens passed to fusion, a line for each pool.

    Args:
        points: `pool`, `tokens` (number that all modalities pass on together) and `accuracy`; a
            pool with one point is drawn as a horizontal line.

    Raises:
        DataError: There is no point.
    """
    if not points:
        raise DataError("points: found none, expected at least one")
    figure, axes = one_panel(9.6, 4.2)
    pools = list(dict.fromkeys(point["pool"] for point in points))
    for pool, color in zip(pools, (COLORS * len(pools))[: len(pools)], strict=True):
        own = sorted((p["tokens"], p["accuracy"]) for p in points if p["pool"] == pool)
        tokens, accuracy = zip(*own, strict=True)
        if len(own) == 1:
            label = f"{pool} ({tokens[0]} tokens)"
            axes.axhline(accuracy[0], color=FRAME, linestyle="--", linewidth=1.2, label=label)
        else:
            axes.plot(tokens, accuracy, marker="o", color=color, label=pool)
    ticks = sorted({point["tokens"] for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("tokens passed to fusion, all modalities together")
    axes.set_ylabel("accuracy")
    open_frame(axes, grid="both")
    outside_legend(figure, axes, "center right", columns=1)
    return figure


def _relative_saliency(example: Example, name: str) -> np.ndarray:
    """Saliency of each token divided by its mean, `[tokens]`."""
    share = np.full(len(example.spans[name]), np.nan)
    if name in example.saliency:
        kept = example.kept[name]
        share[kept[kept >= 0]] = example.saliency[name][kept >= 0]
    if np.isnan(share).any():
        raise DataError(
            f"saliency of {name!r}: found that of {np.isfinite(share).sum()} tokens, expected all "
            f"{share.size}; predict with pool attn_topk and k of at least the tokens there are"
        )
    return share / share.mean()


def _draw_channels(axes: Axes, example: Example, name: str):
    signal = example.signals[name]
    seconds = np.arange(len(signal)) / example.sampling_rate
    colors = (COLORS * signal.shape[1])[: signal.shape[1]]
    edge = [withStroke(linewidth=2.4, foreground="white", alpha=0.8)]  # visible on any shade
    for channel, color in zip(signal.T, colors, strict=True):
        axes.plot(seconds, channel, color=color, linewidth=1.1, path_effects=edge)
    axes.set_xlim(-0.5 / example.sampling_rate, (len(signal) - 0.5) / example.sampling_rate)
    axes.set_ylabel("signal")
    open_frame(axes, grid=None)
