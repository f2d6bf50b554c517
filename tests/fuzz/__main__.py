"""Fuzzes the readers: `python -m tests.fuzz --seconds=600 --jobs=2`."""

import argparse
import importlib
import tempfile
from pathlib import Path

from tests.fuzz import report
from tests.fuzz.harness import FINDINGS, Limits, fuzz


def main() -> int:
    """Fuzzes, keeps what was found, and writes the table; 1 if anything was found."""
    args = _arguments()
    table = importlib.import_module(args.module).READERS
    only = [name for name in args.only.split(",") if name]
    unknown = set(only) - {reader.name for reader in table}
    if unknown:
        raise SystemExit(f"--only: no reader {', '.join(sorted(unknown))}")
    readers = [reader for reader in table if not only or reader.name in only]
    limits = Limits(args.seconds, args.inputs, args.hang, args.memory << 20)
    order = [reader.name for reader in table]
    found = 0

    def done(name: str, row: dict) -> None:
        nonlocal found
        found += sum(row[outcome] for outcome in FINDINGS)
        row = {**row, "seed": args.seed}
        print(name, *(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
        if args.json:
            rows = report.save(args.json, name, row, order)
            if args.page:
                report.write_page(args.page, rows)

    with tempfile.TemporaryDirectory(prefix="fuzz") as work:
        fuzz(readers, args.seed, limits, args.jobs, Path(work), args.findings, done)
    return int(found > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for each reader")
    parser.add_argument("--inputs", type=int, default=0, help="for each reader, 0 for no limit")
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time")
    parser.add_argument("--only", default="", help="names of readers, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="inputs are drawn by it")
    parser.add_argument("--hang", type=float, default=10.0, help="seconds an input may take")
    parser.add_argument("--memory", type=int, default=512, help="MiB an input may take")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="a folder")
    parser.add_argument("--json", type=Path, help="counts, where rows are replaced or added")
    parser.add_argument("--page", type=Path, help="a page with the marks of the table")
    parser.add_argument("--module", default="tests.fuzz.readers", help="what holds READERS")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
