"""Colors and helpers that all figures share.

Colors are those of Okabe and Ito, which color-blind readers can tell apart. Figures are created
without `pyplot`, so that no global state keeps them.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def open_frame(axes: Axes, grid: bool = True):
    """Removes the upper and right frame of a panel, and draws horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    if grid:
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
