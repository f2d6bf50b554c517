"""Keeps the counts of all readers in a JSON file, and their table in a page."""

import json
import platform
from pathlib import Path

import numpy as np

BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"
_COLUMNS = {
    "inputs": "inputs",
    "read": "read",
    "named": "named errors",
    "crashes": "crashes",
    "hangs": "hangs",
    "over_memory": "over memory",
    "code_run": "code run",
    "seconds": "seconds",
}


def save(path: Path, name: str, row: dict, order: list[str]) -> dict[str, dict]:
    """Puts the row of a reader in place of its last one; all rows, in the order of the table."""
    rows = json.loads(path.read_text())["readers"] if path.is_file() else {}
    rows[name] = {**row, "python": platform.python_version(), "numpy": np.__version__}
    rows = {key: rows[key] for key in order if key in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"readers": rows}, indent=1) + "\n")
    return rows


def table(rows: dict[str, dict]) -> str:
    """The rows in Markdown, with their sum below."""
    counts = [key for key in _COLUMNS if key != "seconds"]
    total = {key: sum(row[key] for row in rows.values()) for key in _COLUMNS}
    lines = [
        f"| reader | {' | '.join(_COLUMNS.values())} |",
        f"|---|{'---:|' * len(_COLUMNS)}",
    ]
    for name, row in [*rows.items(), ("all", total)]:
        cells = [f"{row[key]:,}" for key in counts]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['seconds']:,.0f} |")
    return "\n".join(lines)


def write_page(path: Path, rows: dict[str, dict]) -> None:
    """Puts the table between the marks of a page."""
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}")
