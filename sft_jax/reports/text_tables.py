"""Tables of text from rows of plain values, for terminals and Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_NUMBER = re.compile(r"[-+]?[\d.,]+%?|-")


class Grid(NamedTuple):
    """A table as text.

    Attributes:
        columns: Names of the columns.
        lines: Text of the cells, `[rows][columns]`.
        right: Whether each column only has numbers, and is aligned right.
    """

    columns: list[str]
    lines: list[list[str]]
    right: list[bool]


def grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Formats the cells of a table as text.

    Args:
        rows: One mapping for each row; columns are their keys in order of first appearance. Floats
            get four significant digits, None and missing entries a dash.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_cell(row.get(key)) for key in keys] for row in rows]
    right = [all(_NUMBER.fullmatch(line[i]) for line in lines) for i in range(len(keys))]
    return Grid([_cell(key) for key in keys], lines, right)


def align(table: Grid) -> str:
    """A table of escaped cells as aligned Markdown."""
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
    """Rows as an aligned Markdown table, readable in a terminal; see `grid`."""
    return align(escaped(grid(rows), lambda text: text.replace("|", "\\|")))


def escaped(table: Grid, escape: Callable[[str], str]) -> Grid:
    """The table with `escape` applied to the text of every cell."""
    return Grid(
        list(map(escape, table.columns)),
        [list(map(escape, line)) for line in table.lines],
        table.right,
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines())
