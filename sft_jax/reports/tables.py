"""Tables from rows of plain values: text of the cells, alignment, and how they look in Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_NUMBER = re.compile(r"[-+]?[\d.,]+%?|-")
# In nats, on the scale of the data, or without a unit; every other metric is a share.
NO_SHARE = ("loss", "d_prime", "mae", "corr")


class Grid(NamedTuple):
    """A table as text.

    Attributes:
        columns: their names.
        lines: `[rows][columns]` text of the cells.
        right: for each column whether it holds numbers alone and stands to the right.
    """

    columns: list[str]
    lines: list[list[str]]
    right: list[bool]


def grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Cells of a table as text.

    Args:
        rows: one mapping a row; columns are their keys in order of first appearance. Floats get
            four significant digits, None and missing entries a dash; columns of numbers and
            percentages stand to the right.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_cell(row.get(key)) for key in keys] for row in rows]
    right = [all(_NUMBER.fullmatch(line[i]) for line in lines) for i in range(len(keys))]
    return Grid([_cell(key) for key in keys], lines, right)


def draw(table: Grid) -> str:
    """A table of escaped cells, aligned and ruled as Markdown has it."""
    lines = [table.columns, *table.lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(table.columns))]

    def line_of(line: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, table.right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, table.right, strict=True)
    ]
    return "\n".join([line_of(table.columns), line_of(rule), *map(line_of, table.lines)])


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an aligned table, readable in a terminal and valid Markdown; see `grid`."""
    return draw(escaped(grid(rows), lambda text: text.replace("|", "\\|")))


def escaped(table: Grid, escape: Any) -> Grid:
    """The table with `escape` applied to the text of every cell."""
    return Grid(
        list(map(escape, table.columns)),
        [list(map(escape, line)) for line in table.lines],
        table.right,
    )


def figure_of(metric: str, value: float | None) -> str | None:
    """A metric's value as text: a percentage, or four decimals where it is no share."""
    if value is None:
        return None
    return f"{value:.4f}" if metric in NO_SHARE else f"{value:.1%}"


def interval_of(metric: str, estimate: Mapping[str, float | None]) -> str | None:
    """`low to high` of `{value, low, high}`; None where there is no interval."""
    low, high = (figure_of(metric, estimate[end]) for end in ("low", "high"))
    return None if low is None else f"{low} to {high}"


def change_of(metric: str, value: float | None) -> str | None:
    """A difference of a metric as text, with its sign; of shares in percentage points."""
    if value is None:
        return None
    return f"{value:+.4f}" if metric in NO_SHARE else f"{100 * value:+.1f}"


def change_interval(metric: str, estimate: Mapping[str, float | None]) -> str | None:
    """As `interval_of`, of a difference."""
    low, high = (change_of(metric, estimate[end]) for end in ("low", "high"))
    return None if low is None else f"{low} to {high}"


def spread_of(metric: str, value: float | None) -> str | None:
    """A standard deviation as text, without its sign; of shares in percentage points."""
    if value is None:
        return None
    return f"{value:.4f}" if metric in NO_SHARE else f"{100 * value:.1f}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines())
