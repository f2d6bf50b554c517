"""Colors and helpers that all figures share.

Colors are those of Okabe and Ito, which color-blind readers can tell apart. Figures are created
without `pyplot`, so that no global state keeps them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
KEPT, FRAME, ABSENT = "#F2DC9B", "#555555", "#E8E8E8"
RUST = "#A34700"  # vermilion, dark enough for text
DPI = 120
NARROW = 4.6  # inches: a panel that can still be read on a phone


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG at 120 dots per inch and returns `path`."""
    figure.savefig(path, dpi=DPI, pil_kwargs={"optimize": True})
    return path


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def stacked_panels(
    width: float, heights: Sequence[float], margin: float
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights below each other; sizes are in inches."""
    figure = Figure(figsize=(width, sum(heights) + margin), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    return figure, list(grid.subplots(sharex=True, squeeze=False)[:, 0])


def open_frame(axes: Axes, grid: Literal["x", "y", "both"] | None = "y"):
    """Removes the upper and right frame of a panel, and draws grid lines along `grid`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    if grid:
        axes.grid(axis=grid, color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)


def label_powers(axis: Axis, subs: Sequence[int] = (1, 2, 5)):
    """Labels a logarithmic axis with plain numbers, `subs` times powers of 10."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def outside_legend(figure: Figure, axes: Axes, place: str = "lower left", columns: int = 2):
    """Draws the legend of a panel outside all panels of its figure."""
    look: dict[str, Any] = {"loc": f"outside {place}", "ncols": columns, "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), **look)
