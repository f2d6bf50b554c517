"""SIGKILL: at any moment, in the middle of a checkpoint write, in the middle of a restore."""

import functools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sft_jax.training.checkpoint import Checkpoints
from tests.faults.bench import Bench, checkpoints
from tests.faults.lives import Ended, Life, signal_after
from tests.faults.verdict import Verdict, what_is_wrong

ANY, WRITE, RESTORE = "kill", "kill_write", "kill_restore"
# What happens to files while a checkpoint is written, swept away or made visible.
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
_BY_ITSELF = "kills itself as it was told"
_TEMPORARY = ".orbax-checkpoint-tmp"


def killed_run(bench: Bench, rng: random.Random, folder: Path, kills: int) -> list[Verdict]:
    """A run that is killed again and again, until it has ended or `kills` are spent."""
    workdir = folder / "run"
    _, expected = bench.undisturbed()
    done: list[str] = []
    notes = ""
    for _ in range(kills):
        kind, ended = _one_life(bench, rng, workdir)
        if ended.code == -signal.SIGKILL:
            done.append(kind)
            continue
        if ended.code:
            notes = f"a later start ended with {ended.code}: {ended.last_words}"
        break
    if not notes:
        notes = what_is_wrong(bench, workdir, bench.train(workdir).wait(), expected)
    return [
        Verdict(
            fault=kind,
            injected=done.count(kind),
            survived=0 if notes else done.count(kind),
            lost=done.count(kind) if notes else 0,
            note=notes,
        )
        for kind in (ANY, WRITE, RESTORE)
        if kind in done
    ]


def _one_life(bench: Bench, rng: random.Random, workdir: Path) -> tuple[str, Ended]:
    """Starts a life and kills it in one of the ways; the way it was, and how it ended."""
    kinds = [ANY] * 4 + [WRITE] * 4
    if checkpoints(workdir, "last"):
        kinds += [RESTORE] * 3
    kind = rng.choice(kinds)
    if kind == ANY:
        moment = rng.uniform(0.0, 1.8 * bench.seconds)
        return kind, bench.train(workdir, before=lambda: die_after(moment)).wait()
    prepare, killer = None, None
    if kind == RESTORE:
        prepare = in_restore(rng.uniform(0.0, 0.3))
    elif rng.random() < 0.5:
        prepare = before_event(workdir / "checkpoints", rng.randrange(30))
    else:
        killer = rng.randint(1, 2), rng.uniform(0.0, 0.12)

    def before():
        # One that does not come so far is killed all the same.
        die_after(1.5 * bench.seconds)
        if prepare is not None:
            prepare()

    life = bench.train(workdir, before=before)
    hit = killer is not None and in_write(life, workdir, *killer)
    ended = life.wait()
    return kind if hit or by_itself(ended) else ANY, ended


def by_itself(ended: Ended) -> bool:
    """Whether a life has killed itself where it was told to: in a save or in a restore."""
    return _BY_ITSELF in ended.said


def die_after(seconds: float):
    """Lets this process be killed once it has used so much of the processors' time."""
    signal_after(seconds, signal.SIGKILL)


def in_write(life: Life, workdir: Path, count: int, delay: float) -> bool:
    """Kills a life that long after its `count`-th write of a checkpoint has begun, if it lives."""
    before, seen = _temporary(workdir), set()
    while life.poll() is None:
        seen |= _temporary(workdir) - before
        if len(seen) >= count:
            time.sleep(delay)
            alive = life.poll() is None
            life.kill()
            return alive
        time.sleep(0.002)
    return False


def _temporary(workdir: Path) -> set[tuple[str, int]]:
    """Folders of checkpoints that are being written."""
    found = set()
    for kind in ("last", "best"):
        try:
            with os.scandir(workdir / "checkpoints" / kind) as entries:
                found |= {(e.path, e.inode()) for e in entries if _TEMPORARY in e.name}
        except FileNotFoundError:
            continue
    return found


def before_event(prefix: Path, count: int) -> Callable[[], None]:
    """Lets a process kill itself before it does the `count`-th thing to what begins like that."""
    left = [count]

    def hook(event, arguments):
        if (
            event in _EVENTS
            and _changes(event, arguments)
            and str(arguments[0]).startswith(str(prefix))
        ):
            left[0] -= 1
            if left[0] < 0:
                _die()

    return lambda: sys.addaudithook(hook)


def _die():
    os.write(2, f"{_BY_ITSELF}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _changes(event: str, arguments: tuple) -> bool:
    if event != "open":
        return True
    mode, flags = arguments[1], arguments[2]
    return any(c in mode for c in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def in_restore(delay: float) -> Callable[[], None]:
    """Lets a process kill itself that long after it begins to restore, or at the end of that.

    With nothing to restore it lives.
    """

    def patch():
        resume = Checkpoints.resume

        def resume_and_die(self, *arguments):
            restores = self.latest("last") is not None
            if restores:
                threading.Timer(delay, _die).start()
            resumed = resume(self, *arguments)
            if restores:
                _die()
            return resumed

        Checkpoints.resume = resume_and_die

    return patch


def terminated_run(bench: Bench, rng: random.Random, folder: Path, signals: int) -> list[Verdict]:
    """A run that is told to stop again and again."""
    workdir, sent, last = folder / "run", 0, None
    for _ in range(signals):
        stop = functools.partial(
            signal_after, rng.uniform(0.0, 1.6 * bench.seconds), signal.SIGTERM
        )
        last = bench.train(workdir, before=stop).wait()
        if last.code not in (0, -signal.SIGTERM) or "finished" in last.said:
            break
        sent += 1
    else:
        last = bench.train(workdir).wait()
    wrong = what_is_wrong(bench, workdir, last, bench.undisturbed()[1], whole_windows=False)
    counts = {"lost": sent} if wrong else {"survived": sent}
    return [Verdict(fault="sigterm", injected=sent, note=wrong, **counts)]
