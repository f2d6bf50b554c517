"""The training log: `metrics.jsonl` and TensorBoard event files.

`metrics.jsonl` has one object a line, `{kind: "train" | "valid", step, epoch, <metric>: number}`.
A step appears twice if the run was resumed before it; the last line counts.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from sft_jax.files.json_files import integer, number, read_lines, record, text
from sft_jax.types import CheckpointError

NAME = "metrics.jsonl"
_LINE = record({"kind": text(), "step": integer()}, others=number(undefined=True))
_REMEDY = "remove the line, or train into a new workdir"


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard event files."""

    def __init__(self, workdir: Path, resume_step: int):
        """Opens the logs and drops records after `resume_step`, which training will repeat."""
        path = workdir / NAME
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            # An interrupted write may have cut off the last line.
            for line in _read_lines(path, skip_unfinished=True):
                if line["step"] <= resume_step:
                    file.write(json.dumps(line) + "\n")
        os.replace(partial, path)
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(workdir / "events"), purge_step=resume_step + 1, flush_secs=30
        )

    def write(self, kind: str, step: int, values: dict[str, float], **extra: float):
        """Writes one line, and each of `values` as a scalar to the event files."""
        self._file.write(json.dumps({"kind": kind, "step": step, **extra, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self):
        """Flushes and closes the files."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`, ordered by step and then kind.

    Raises:
        CheckpointError: A line is not a record, or the file has none.
    """
    records = {(line["kind"], line["step"]): line for line in _read_lines(path)}
    if not records:
        raise CheckpointError(
            f"{path}: found no record, expected at least one; let `python -m sft_jax.train` run "
            "past its first train.log_every steps"
        )
    return [records[key] for key in sorted(records, key=lambda key: (key[1], key[0]))]


def _read_lines(path: Path, skip_unfinished: bool = False) -> Iterator[dict[str, Any]]:
    """Reads one record at a time, since a log may be longer than memory allows."""
    if path.exists():
        yield from read_lines(path, _LINE, _REMEDY, ended=skip_unfinished)
