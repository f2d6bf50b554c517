"""Compares with recorded numbers: `python -m sft_jax.check_vectors DIR`."""

import math
import sys
from pathlib import Path

from sft_jax import cli
from sft_jax.interop.vectors.recorded import TOLERANCE, compare_folder
from sft_jax.interop.vectors.task_vectors import TOLERANCE as TASK_TOLERANCE
from sft_jax.types import DataError


def main(folder: str):
    """Prints a line per file and quantity; ends with status 1 if one of them disagrees."""
    compared = failed = 0
    for file, outcome in compare_folder(Path(folder).expanduser()):
        if isinstance(outcome, DataError):
            print(f"FAIL  {file:<24} {outcome}")
            failed += 1
            continue
        for difference in outcome:
            verdict = "ok  " if difference.agrees else "FAIL"
            off = "NaN" if math.isnan(difference.largest) else f"{difference.largest:.1e}"
            print(f"{verdict}  {file:<24} {difference.quantity:<38} {off:>8}", flush=True)
            compared += 1
            failed += not difference.agrees
    tolerance = f"tolerance {TOLERANCE:.0e} ({TASK_TOLERANCE:.0e} for losses and scores of tasks)"
    print(f"{compared} quantities compared, {failed} failed; {tolerance}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, argument="DIR")
