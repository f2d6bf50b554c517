"""Reads mutated files in a child process, and tells how every reading ended.

The child measures its memory by the peak of its resident set, which Linux lets a process reset
(`/proc/self/clear_refs`), so that every input is measured on its own. A limit on all of its address
space would not do: jax and its threads reserve far more than they use. What is asked for at once
and never touched is caught by a limit on private memory (`RLIMIT_DATA`).
"""

import contextlib
import dataclasses
import faulthandler
import functools
import json
import math
import mmap
import os
import re
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import audit
from tests.fuzz.mutate import write_input

OUTCOMES = ("read", "named", "crashes", "hangs", "over_memory", "code_run")
FINDINGS = OUTCOMES[2:]
MEMORY_BYTES = 512 << 20
WARM_UP_SECONDS = 120.0
# How many times longer an input may wait than compute.
PATIENCE = 12
# Of findings that look alike.
MOST_KEPT = 3
_RECYCLE = 3


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads a file or a folder that a stranger may have made.

    Attributes:
        name: in tables, and what inputs are drawn by.
        seeds: writes a few small, valid inputs (files or folders) into a folder.
        read: reads an input to its end, as what users call does.
        named: the exceptions that are clear answers to bad input.
        share: of a given number of inputs, how many it gets; below 1 where each takes long.
    """

    name: str
    seeds: Callable[[Path], list[Path]]
    read: Callable[[Path], None]
    named: tuple[type[BaseException], ...]
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long to go on, and what an input may take.

    Attributes:
        seconds: for a reader, unless `inputs` come first; starts of children do not count.
        inputs: for a reader whose share is 1, 0 for as many as there is time for.
        hang: seconds of a processor after which an input hangs.
        memory: bytes an input may take.
    """

    seconds: float = 600.0
    inputs: int = 0
    hang: float = 10.0
    memory: int = MEMORY_BYTES


class Entry(NamedTuple):
    """Of the board.

    Attributes:
        number: of the input at hand, -1 before the first.
        began: when its reading began, on the monotonic clock.
        spent: seconds of processor time that the child had taken by then.
        allowed: seconds that it may take.
        worked: seconds that inputs have taken so far, without starts of children.
    """

    number: int
    began: float
    spent: float
    allowed: float
    worked: float


class Board:
    """What child and parent both see: the input at hand, since when, and the counts."""

    _FORM = struct.Struct(f"qdddd{len(OUTCOMES)}q")

    def __init__(self):
        self._memory = mmap.mmap(-1, self._FORM.size)

    def get(self) -> Entry:
        return Entry(*self._FORM.unpack(self._memory[:])[:5])

    def counts(self) -> dict[str, int]:
        """By outcome."""
        return dict(zip(OUTCOMES, self._FORM.unpack(self._memory[:])[5:], strict=True))

    def begin(self, number: int, allowed: float, spent: float = 0.0) -> None:
        """Something that may take `allowed` seconds, by a process that has taken `spent`."""
        entry = Entry(number, time.monotonic(), spent, allowed, self.get().worked)
        self._put(entry, self.counts())

    def end(self, outcome: str) -> None:
        """Counts what became of the input at hand, and the time it took."""
        entry, counts = self.get(), self.counts()
        counts[outcome] += 1
        worked = entry.worked + time.monotonic() - entry.began
        self._put(entry._replace(worked=worked), counts)

    def _put(self, entry: Entry, counts: dict[str, int]) -> None:
        self._memory[:] = self._FORM.pack(*entry, *counts.values())


class Fuzzing:
    """The fuzzing of one reader, in a child that is replaced when it hangs or dies."""

    def __init__(self, reader: Reader, seed: int, limits: Limits, work: Path, findings: Path):
        self.reader, self.seed, self.limits = reader, seed, limits
        self.work = work / reader.name
        self.scratch = self.work / "scratch"
        self.findings = findings
        self.board = Board()
        self._child = 0
        (self.work / "seeds").mkdir(parents=True)
        (self.work / "outside.txt").write_text("not part of any input")
        self._next(self._begin, WARM_UP_SECONDS)

    def step(self) -> bool:
        """Looks after the child; true once there is nothing left to do."""
        pid, status = os.waitpid(self._child, os.WNOHANG)
        number = self.board.get().number
        if not pid:
            if self._hangs():
                os.kill(self._child, 9)
                os.waitpid(self._child, 0)
                self._lost("hangs", number, f"no answer after {self.limits.hang:g} s")
                self._next(self._work_on, WARM_UP_SECONDS, number + 1)
            return False
        code = os.waitstatus_to_exitcode(status)
        if code and number < 0:
            said = self._said()
            raise RuntimeError(f"{self.reader.name}: its seeds could not be made or read\n{said}")
        if code == _RECYCLE:
            self._next(self._work_on, WARM_UP_SECONDS, number + 1)
        elif code:
            self._lost("crashes", number, f"the process ended with {code}")
            self._next(self._work_on, WARM_UP_SECONDS, number + 1)
        else:
            return True
        return False

    def _hangs(self) -> bool:
        """Whether the input has had its time: of a processor or, where it waits, of the clock."""
        entry = self.board.get()
        passed = time.monotonic() - entry.began
        if passed <= entry.allowed:
            return False
        took = processor_seconds(self._child) - entry.spent
        return took > entry.allowed or passed > PATIENCE * entry.allowed

    def _lost(self, outcome: str, number: int, what: str) -> None:
        self.board.end(outcome)
        what = f"{self._said()}\n{what}"
        keep(self.findings, self.reader.name, outcome, self.seed, number, what, self.scratch)

    def _said(self) -> str:
        """The end of what the children have written."""
        log = self.work / "log.txt"
        return log.read_bytes()[-4000:].decode(errors="replace") if log.exists() else ""

    def _next(self, work: Callable[[int], int], seconds: float, number: int = -1) -> None:
        self.board.begin(number, seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Threads there may be, such as jaxlib's, are not used by the child.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._child = os.fork()
        if self._child:
            return
        code = 1
        try:
            warnings.simplefilter("ignore")
            sys.dont_write_bytecode = True
            code = work(number)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _begin(self, number: int) -> int:
        """Makes the seeds and goes on in the same process, which has most things compiled then."""
        made = self.reader.seeds(self.work / "seeds")
        names = [str(path.relative_to(self.work / "seeds")) for path in made]
        (self.work / "seeds.json").write_text(json.dumps(names))
        return self._work_on(0)

    def _seed_copy(self, path: Path) -> Path:
        empty(self.scratch)
        target = self.scratch / path.name
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
        return target

    def _work_on(self, number: int) -> int:
        names = json.loads((self.work / "seeds.json").read_text())
        seeds = [self.work / "seeds" / name for name in names]
        log = open(self.work / "log.txt", "ab")  # noqa: SIM115  # until the process ends
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.enable(log)
        # What is imported late, and backends that start late, are nothing an input asked for.
        for path in seeds:
            self.reader.read(self._seed_copy(path))
        audit.install(self.scratch, self.work)
        base = status_bytes("VmRSS")
        reserved = status_bytes("VmData") + self.limits.memory
        resource.setrlimit(resource.RLIMIT_DATA, (reserved, reserved))
        last = math.ceil(self.limits.inputs * self.reader.share) or -1
        while self.board.get().worked < self.limits.seconds and number != last:
            self._try(number, seeds)
            if status_bytes("VmRSS") - base > self.limits.memory // 2:
                return _RECYCLE
            number += 1
            log.truncate(1 << 20)
        return 0

    def _try(self, number: int, seeds: list[Path]) -> None:
        empty(self.scratch)
        self.board.begin(number, self.limits.hang, time.process_time())
        given = write_input(self.seed, self.reader.name, number, seeds, self.scratch)
        before = reset_peak()
        outcome, what = "read", ""
        with audit.watch() as events:
            try:
                self.reader.read(given)
            except self.reader.named as error:
                outcome = "over_memory" if _out_of_memory(error) else "named"
                what = traceback.format_exc()
            except BaseException as error:
                outcome = "over_memory" if _out_of_memory(error) else "crashes"
                what = traceback.format_exc()
        peak = status_bytes("VmHWM") - before
        if number < len(seeds) and outcome != "read":
            outcome = "crashes"
        if peak > self.limits.memory:
            outcome, what = "over_memory", f"{peak} bytes\n{what}"
        if events:
            outcome, what = "code_run", "\n".join([what, *events[::-1]])
        self.board.end(outcome)
        if outcome in FINDINGS:
            again = functools.partial(write_input, self.seed, self.reader.name, number, seeds)
            keep(self.findings, self.reader.name, outcome, self.seed, number, what, again)


def keep(
    findings: Path,
    reader: str,
    outcome: str,
    seed: int,
    number: int,
    what: str,
    source: Path | Callable[[Path], object],
) -> None:
    """Keeps an input and what became of it, unless several like it are kept already."""
    kind = _signature(what)
    alike = findings / reader / outcome / kind
    if alike.exists() and len(list(alike.iterdir())) >= MOST_KEPT:
        return
    folder = alike / f"{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "what.txt").write_text(f"{reader} seed {seed} input {number}: {outcome}\n\n{what}\n")
    with contextlib.suppress(OSError, shutil.Error):
        if callable(source):
            (folder / "input").mkdir()
            source(folder / "input")
        else:
            shutil.copytree(source, folder / "input", symlinks=True)


def _signature(what: str) -> str:
    """The type of the error and the last line that was reached, as the name of a folder."""
    lines = [line.strip() for line in what.splitlines() if line.strip()]
    frames = [line for line in lines if line.startswith("File ")]
    where = "-".join(frames[-1].replace('"', "").split("/")[-1].split(", ")[:2]) if frames else ""
    last = re.split(r"[: (]", lines[-1])[0] if lines else "none"
    return "".join(c if c.isalnum() else "_" for c in f"{last}-{where}")[:80]


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out somewhere on the way to this error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, MemoryError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def empty(folder: Path) -> None:
    """Leaves an empty folder there."""
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def status_bytes(key: str) -> int:
    """A size the kernel gives of this process: `VmRSS`, `VmHWM`, `VmData`."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(key.encode() + b":"):
                return int(line.split()[1]) << 10
    raise KeyError(key)


def processor_seconds(pid: int) -> float:
    """Processor time that a process has taken, of all its threads."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def reset_peak() -> int:
    """Starts the peak of the resident set anew; the resident set now, in bytes."""
    with open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")
    return status_bytes("VmRSS")


def fuzz(
    readers: list[Reader],
    seed: int,
    limits: Limits,
    jobs: int,
    work: Path,
    findings: Path,
    done: Callable[[str, dict], None],
) -> None:
    """Fuzzes all readers, `jobs` of them at a time.

    Args:
        readers: what to fuzz.
        seed: inputs are drawn by it.
        limits: of time, number and memory.
        jobs: children at a time.
        work: an empty folder for what lasts no longer than this call.
        findings: where inputs that should not have ended as they did are kept.
        done: called with the name and the counts of every reader when it is finished.
    """
    waiting, active = list(reversed(readers)), []
    while waiting or active:
        while waiting and len(active) < jobs:
            active.append(Fuzzing(waiting.pop(), seed, limits, work, findings))
        for one in list(active):
            if one.step():
                active.remove(one)
                counts, seconds = one.board.counts(), round(one.board.get().worked, 1)
                inputs = sum(counts.values())
                done(one.reader.name, {"inputs": inputs, **counts, "seconds": seconds})
        time.sleep(0.02)
