"""Several trials at once, each in a process that is forked from this one and forks lives itself."""

import dataclasses
import json
import os
import random
import shutil
import traceback
from collections.abc import Iterator
from typing import Any

from tests.faults.bench import Bench
from tests.faults.lives import alone, end_with_parent
from tests.faults.trials import FAULTS

Result = tuple["Task", list[dict[str, Any]], str]


@dataclasses.dataclass(frozen=True)
class Task:
    """A trial of a fault."""

    fault: str
    number: int

    @property
    def name(self) -> str:
        """Of the trial, in results."""
        return f"{self.fault}/{self.number}"


def run_tasks(bench: Bench, seed: int, tasks: Iterator[Task], jobs: int) -> Iterator[Result]:
    """Runs trials, `jobs` of them at once.

    Args:
        bench: to run them on.
        seed: of all generators.
        tasks: asked for the next one when there is room, after results have been handed out.
        jobs: processes at once.

    Yields:
        Of each trial, as they end: its task, its verdicts as JSON, and what went wrong with the
        trial itself, if anything.
    """
    running: dict[int, Task] = {}
    while True:
        while len(running) < jobs and (task := next(tasks, None)) is not None:
            running[_start(bench, seed, task)] = task
        if not running:
            return
        pid, _ = os.wait()
        task = running.pop(pid)
        answer = _folder(bench, task).with_suffix(".json")
        if not answer.exists():
            yield task, [], "its process was ended"
            continue
        verdicts, error = json.loads(answer.read_text())
        if not error and not any(verdict["lost"] for verdict in verdicts):
            shutil.rmtree(_folder(bench, task))
            answer.unlink()
        yield task, verdicts, error


def _folder(bench: Bench, task: Task):
    return bench.root / "trials" / f"{task.fault}_{task.number}"


def _start(bench: Bench, seed: int, task: Task) -> int:
    alone()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    end_with_parent(parent)
    verdicts: list[dict[str, Any]] = []
    error = ""
    folder = _folder(bench, task)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        rng = random.Random(f"{seed} {task.name}")
        found = FAULTS[task.fault].attempt(bench, rng, folder, task.number)
        verdicts = [dataclasses.asdict(verdict) for verdict in found]
    except BaseException:
        error = traceback.format_exc()
    partial = folder.with_suffix(".partial")
    partial.write_text(json.dumps([verdicts, error]))
    os.replace(partial, folder.with_suffix(".json"))
    os._exit(0)
