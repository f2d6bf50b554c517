"""Tables of text from rows of plain values, for terminals and Markdown."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?[\d.,]+%?|-")


def grid(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Formats a table as text: the names of its columns, then the cells of each row.

    Args:
        rows: One mapping for each row; columns are their keys in order of first appearance. Floats
            get four significant digits, None and missing entries a dash.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [list(map(_cell, keys)), *([_cell(row.get(key)) for key in keys] for row in rows)]


def _escape_bars(text: str) -> str:
    return text.replace("|", "\\|")


def format_table(
    rows: Sequence[Mapping[str, Any]], escape: Callable[[str], str] = _escape_bars
) -> str:
    """Rows as an aligned Markdown table, readable in a terminal; numbers are aligned right.

    Args:
        rows: See `grid`.
        escape: Escapes the text of a cell.
    """
    columns = []
    for name, *cells in zip(*grid(rows), strict=True):
        name, *texts = map(escape, (name, *cells))
        width = max(3, *map(len, (name, *texts)))
        if all(map(_NUMBER.fullmatch, cells)):
            columns.append([t.rjust(width) for t in (name, "-" * (width - 1) + ":", *texts)])
        else:
            columns.append([t.ljust(width) for t in (name, "-" * width, *texts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines())
