"""A diagram of the sparse fusion model of a configuration, with its token counts."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config
from sft_jax.reports.figures.style import COLORS, FRAME
from sft_jax.types import ConfigError

Edges = tuple[float, float]

# Left and right edge of every stage, in inches.
_INPUT, _TOKENS, _ENCODER, _POOL = (0.1, 1.2), (1.5, 3.1), (3.4, 4.3), (4.6, 5.9)
_KEPT, _FUSED, _FUSION, _HEAD = (6.2, 7.25), (7.65, 7.9), (8.25, 9.15), (9.45, 10.3)
_WIDTH, _ROW, _TOP, _BOTTOM = 10.4, 1.15, 0.4, 0.1
_SQUARE = 0.14
# Longer rows of tokens are drawn as the first ones, dots and the last one.
_MOST_TOKENS, _MOST_KEPT = 8, 4
_GREY, _PALE = "#444444", "#F4F4F4"


def model_diagram(config: Config) -> Figure:
    """Draws the tokens of every modality through its own blocks and its pool into the fused blocks.

    Args:
        config: Configuration of an `sft` model with modalities and number of classes.

    Raises:
        ConfigError: It is of another model, or leaves modalities or classes to the data.
    """
    _check(config)
    specs, model = config.modalities, config.model
    height = _TOP + max(len(specs), 2) * _ROW + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    _titles(axes, height - 0.25, model.num_pre_layers)
    middle = _BOTTOM + max(len(specs), 2) * _ROW / 2
    rows = [middle + ((len(specs) - 1) / 2 - i) * _ROW for i in range(len(specs))]
    tops = _fused(axes, specs, middle)
    for spec, color, y, top in zip(specs, COLORS * 2, rows, tops, strict=False):
        _modality(axes, spec, color, y, model.num_pre_layers)
        _arrow(axes, (_KEPT[1], y), (_FUSED[0] - 0.03, top))
    _stack(axes, _FUSION, middle, f"{model.num_post_layers} x\nencoder\nblock", _PALE, _GREY, 1.0)
    _arrow(axes, (_FUSED[1] + 0.03, middle), (_FUSION[0], middle))
    _arrow(axes, (_FUSION[1] + 0.08, middle), (_HEAD[0], middle))
    _box(axes, _HEAD, middle, 0.9, f"head\non CLS\n{model.num_classes}\nclasses", _PALE, _GREY)
    return figure


def save_diagram(figure: Figure, path: Path):
    """Writes the diagram in the format of the path's suffix; equal diagrams give equal files."""
    with matplotlib.rc_context({"svg.hashsalt": "sft_jax"}):
        svg: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, facecolor="white", **svg)


def _check(config: Config):
    if config.model.name != "sft":
        raise ConfigError(
            f"model.name: given {config.model.name!r}, expected 'sft', whose parts are drawn"
        )
    if not config.modalities or not config.model.num_classes:
        raise ConfigError(
            f"given {len(config.modalities)} modalities and num_classes "
            f"{config.model.num_classes}, expected at least one of both; name them, such as "
            "--config.model.num_classes=7, since no data are read here"
        )


def pool_words(spec: ModalitySpec) -> str:
    """A few words on the pool of a modality."""
    if spec.k is not None:
        return f"{spec.pool}, k = {spec.k}"
    if spec.window is not None:
        return f"{spec.pool},\nwindow {spec.window}"
    return "every token kept"


def _titles(axes: Axes, y: float, num_pre_layers: int):
    stages = ((_TOKENS, "tokens"), (_ENCODER, "own blocks"), (_POOL, "sparse-pooling block"))
    for (left, right), title in (*stages, (_KEPT, "kept"), ((_FUSED[0], _HEAD[1]), "fusion")):
        if title != "own blocks" or num_pre_layers:
            _write(axes, (left, right), y, title, color=_GREY, size=10)


def _modality(axes: Axes, spec: ModalitySpec, color: str, y: float, num_pre_layers: int):
    shape = (
        f"{spec.length} ids" if spec.tokenizer == "token" else f"{spec.length} x {spec.feature_dim}"
    )
    _box(axes, _INPUT, y, 0.62, f"{spec.name}\n{shape}", "white", color)
    _arrow(axes, (_INPUT[1], y), (_TOKENS[0], y))
    _tokens(axes, _TOKENS, y, spec.num_tokens, _MOST_TOKENS, color)
    _write(axes, _TOKENS, y - 0.3, f"CLS + {spec.num_tokens}", size=9, color=_GREY)
    reached = _TOKENS[1]
    if num_pre_layers:
        _arrow(axes, (reached, y), (_ENCODER[0], y))
        _stack(axes, _ENCODER, y, f"{num_pre_layers} x\nencoder\nblock", _PALE, color, 0.72)
        reached = _ENCODER[1] + (0.08 if num_pre_layers > 1 else 0)
    _arrow(axes, (reached, y), (_POOL[0], y))
    _box(axes, _POOL, y, 0.86, f"attention,\nthen\n{pool_words(spec)}", "#FBF3DC", color)
    _arrow(axes, (_POOL[1], y), (_KEPT[0], y))
    _tokens(axes, _KEPT, y, spec.num_pooled, _MOST_KEPT, color)
    _write(axes, _KEPT, y - 0.3, f"CLS + {spec.num_pooled}", size=9, color=_GREY)


def _fused(axes: Axes, specs: tuple[ModalitySpec, ...], middle: float) -> list[float]:
    """The fused sequence as a column; returns the height at which each modality joins it."""
    drawn = [min(spec.num_pooled, 4) for spec in specs]
    gap = 0.06
    total = (1 + sum(drawn)) * (_SQUARE + 0.02) + len(specs) * gap
    left, y = (_FUSED[0] + _FUSED[1] - _SQUARE) / 2, middle + total / 2
    y -= _SQUARE
    _square(axes, left, y, _GREY)
    axes.text(left, y + _SQUARE + 0.07, "CLS, summed", size=9, color=_GREY)
    heights = []
    for count, color in zip(drawn, COLORS * 2, strict=False):
        y -= gap
        top = y
        for _ in range(count):
            y -= _SQUARE + 0.02
            _square(axes, left, y, color)
        heights.append((top + y) / 2)
    fused = 1 + sum(spec.num_pooled for spec in specs)
    axes.text(left, y - 0.07, f"{fused} in all", va="top", size=9, color=_GREY)
    return heights


def _tokens(axes: Axes, edges: Edges, y: float, count: int, most: int, color: str):
    """CLS and `count` squares, centred between `edges`."""
    shown = min(count, most)
    step = _SQUARE + 0.025
    left = (sum(edges) - (1 + shown) * step - 0.05) / 2
    _square(axes, left, y - _SQUARE / 2, _GREY)
    left += step + 0.05
    for i in range(shown):
        if count > most and i == shown - 2:
            for dot in range(3):
                place = (left + (dot + 0.5) * _SQUARE / 3, y)
                axes.add_patch(Circle(place, 0.016, color=color))
        else:
            _square(axes, left, y - _SQUARE / 2, color)
        left += step


def _square(axes: Axes, x: float, y: float, color: str):
    axes.add_patch(Rectangle((x, y), _SQUARE, _SQUARE, color=color, linewidth=0))


def _write(axes: Axes, edges: Edges, y: float, text: str, **look: Any):
    axes.text(sum(edges) / 2, y, text, ha="center", va="center", **look)


def _stack(axes: Axes, edges: Edges, y: float, text: str, face: str, edge: str, height: float):
    """A box with another one behind it, if it stands for several blocks."""
    if not text.startswith("1 "):
        shifted = (edges[0] + 0.08, edges[1] + 0.08)
        _box(axes, shifted, y + 0.08, height, "", face, edge)
    _box(axes, edges, y, height, text, face, edge)


def _box(axes: Axes, edges: Edges, y: float, height: float, text: str, face: str, edge: str):
    left, right = edges
    corner = (left, y - height / 2)
    look: dict[str, Any] = {"facecolor": face, "edgecolor": edge, "linewidth": 1.4}
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch(corner, right - left, height, boxstyle=style, **look))
    size = 9 if max(map(len, text.split("\n"))) < 13 else 8
    _write(axes, edges, y, text, size=size, linespacing=1.25)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]):
    look = {"arrowstyle": "-|>", "color": FRAME, "linewidth": 1.1, "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)
