"""Results: added to as they come, and shown as a table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "<!-- table -->"
COUNTS = ("injected", "survived", "refused", "lost")


def read(path: Path) -> dict[str, Any]:
    """What is there already; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "trials": []}


def write(path: Path, results: dict[str, Any]):
    """Writes the file whole or not at all, a trial to a line."""
    facts = {key: value for key, value in results.items() if key != "trials"}
    head = json.dumps(facts, indent=2).removesuffix("\n}")
    trials = ",\n".join(f"    {json.dumps(trial)}" for trial in results["trials"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(f'{head},\n  "trials": [\n{trials}\n  ]\n}}\n')
    os.replace(partial, path)


def anywhere(note: str, root: Path, host: str) -> str:
    """A note without the names of folder and machine, which are others elsewhere."""
    return note.replace(f"{root}/", "").replace(f" on {host} ", " on this host ")


def total(trials: Sequence[dict[str, Any]], faults: Sequence[str]) -> dict[str, int]:
    """Sums of the counts of some faults."""
    chosen = [trial for trial in trials if trial["fault"] in faults]
    return {name: sum(trial[name] for trial in chosen) for name in COUNTS}


def table(results: dict[str, Any], titles: dict[str, str]) -> str:
    """A row for each fault of `titles` that was injected, and their sum."""
    lines = ["| fault | injected | survived | refused clearly | lost |", "|---|---|---|---|---|"]
    for fault, title in titles.items():
        row = total(results["trials"], [fault])
        if row["injected"]:
            lines.append(_row(title, row))
    return "\n".join([*lines, _row("all", total(results["trials"], list(titles)))])


def put(page: Path, text: str):
    """Puts a table between the two marks of a page."""
    before, _, after = page.read_text().split(MARK)
    page.write_text(f"{before}{MARK}\n\n{text}\n\n{MARK}{after}")


def shown(page: Path) -> str:
    """The table of a page."""
    return page.read_text().split(MARK)[1].strip()


def _row(title: str, counts: dict[str, int]) -> str:
    return f"| {title} | {' | '.join(str(counts[name]) for name in COUNTS)} |"
