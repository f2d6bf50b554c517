"""What a run writes down while it trains: `metrics.jsonl`, event files, lines on the terminal."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from sft_jax.files.json_files import read_lines
from sft_jax.runs.layouts import METRIC_LINE


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard event files."""

    def __init__(self, workdir: Path, resume_step: int):
        """Opens the logs; records after `resume_step` will come again and are dropped."""
        self._path = workdir / "metrics.jsonl"
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            for line in read_log(self._path):
                if line["step"] <= resume_step:
                    file.write(json.dumps(line) + "\n")
        os.replace(partial, self._path)
        self._file = self._path.open("a")
        self._events = SummaryWriter(
            str(workdir / "events"), purge_step=resume_step + 1, flush_secs=30
        )

    def write(self, kind: str, step: int, values: dict[str, float], **facts: Any):
        """One record: a JSON line, and a scalar for each of `values` in the event files."""
        line = {"kind": kind, "step": step, **facts, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self):
        """Flushes and closes the files."""
        self._file.close()
        self._events.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Complete records of a log, each read when it is asked for; there may be any number.

    A line that was cut off while it was written is left out.

    Raises:
        CheckpointError: a line that is no record.
    """
    if path.exists():
        remedy = "remove the line, or train into a new workdir"
        yield from read_lines(path, METRIC_LINE, remedy, ended=True)
