"""A disk that is full, a folder that is read-only, and another trainer on the same folder."""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.bench import Bench, checkpoints
from tests.faults.lives import Ended
from tests.faults.verdict import Verdict, judged, what_is_wrong

DISK = 4 << 20


def full_disk(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """The disk becomes full, with room for less than one more checkpoint.

    A small disk of its own where one may be mounted; else no file may grow beyond a limit.
    """
    with _disk(folder / "disk") as disk:
        workdir = folder / "disk" / "run"
        bench.midway(workdir)
        size = _size(workdir / "checkpoints" / "last" / str(checkpoints(workdir, "last")[-1]))
        room = int(rng.choice((0.0, rng.random())) * size)
        if not disk:
            start, mend = _limited(bench, workdir, max(512, room // 16))
            verdict = judged(bench, "full_disk", workdir, mend, start)
            return [dataclasses.replace(verdict, note=f"limit of file sizes: {verdict.note}")]
        ballast = folder / "disk" / "ballast"
        free = shutil.disk_usage(ballast.parent).free
        ballast.write_bytes(bytes(max(0, free - room)))
        return [judged(bench, "full_disk", workdir, ballast.unlink)]


def read_only(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """The run's folder cannot be written to, whether it is there already or not."""
    with _disk(folder / "disk") as disk:
        workdir = folder / "disk" / "run"
        if rng.random() < 0.7:
            bench.midway(workdir)

        def set_to(mode: str):
            if disk:
                subprocess.run(["mount", "-o", f"remount,{mode}", folder / "disk"], check=True)
            else:
                for path in (folder / "disk", *workdir.rglob("*")):
                    path.chmod(0o755 if mode == "rw" else 0o555)

        set_to("ro")
        return [judged(bench, "read_only", workdir, lambda: set_to("rw"))]


def two_trainers(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """A second trainer is started on the folder of one that runs.

    Raises:
        RuntimeError: they did not meet; nothing was injected.
    """
    workdir = folder / "run"
    first = bench.train(workdir)
    delay = rng.choice((0.0, 3.0 * rng.random())) * bench.seconds
    while first.poll() is None and first.seconds() < delay:
        time.sleep(0.005)
    second = bench.train(workdir)
    while first.poll() is None and second.poll() is None:
        time.sleep(0.005)
    loser, winner = (first, second) if first.poll() else (second, first)
    goes_on, refused = winner.poll() is None, loser.wait()
    if not refused.code or not goes_on:
        raise RuntimeError(f"one had ended before the other came: {refused.last_words}")
    wrong = what_is_wrong(bench, workdir, winner.wait(), bench.undisturbed()[1])
    if "works in this folder" not in refused.last_words:
        wrong += f"; one ended with {refused.code} and another error: {refused.last_words}"
    if wrong:
        return [Verdict(fault="two_trainers", lost=1, note=wrong)]
    return [Verdict(fault="two_trainers", refused=1, note=refused.last_words)]


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A small disk at a folder; false where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    mounted = not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _limited(
    bench: Bench, workdir: Path, size: int
) -> tuple[Callable[[], Ended], Callable[[], None]]:
    """Lives in which no file may grow beyond a size, until that is mended."""
    limit = [size]

    def before():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit[0], limit[0]))

    return lambda: bench.train(workdir, before=before).wait(), limit.clear


def _size(folder: Path) -> int:
    return sum(os.stat(path).st_blocks * 512 for path in folder.rglob("*"))
