"""Files that are damaged between two lives: of a checkpoint, of prepared data, of programs."""

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import bench as benches
from tests.faults.bench import Bench, checkpoints, finish, until_saved
from tests.faults.kills import die_after
from tests.faults.lives import Ended
from tests.faults.verdict import Verdict, judged, what_is_wrong

HOW = ("flipped", "truncated", "missing")


def damage(file: Path, how: str, rng: random.Random) -> Callable[[], None]:
    """Damages a file; what is returned mends it."""
    content, times = file.read_bytes(), file.stat()

    def mend():
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        place = rng.randrange(len(content))
        flipped = bytes([content[place] ^ 1 << rng.randrange(8)])
        file.write_bytes(content[:place] + flipped + content[place + 1 :])
    return mend


def checkpoint(how: str, bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """One file of the newest checkpoint of a run that was killed."""
    workdir = folder / "run"
    bench.midway(workdir)
    newest = workdir / "checkpoints" / "last" / str(checkpoints(workdir, "last")[-1])
    file = rng.choice(_files(newest))
    mend = damage(file, how, rng)
    verdict = judged(bench, f"checkpoint_{how}", workdir, mend)
    name = file.relative_to(newest)
    return [dataclasses.replace(verdict, note=f"{name}: {verdict.note}".removesuffix(": "))]


def shard(how: str, bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """One shard of the data that a run was trained on until it was killed."""
    workdir, data = folder / "run", folder / "data"
    bench.midway(workdir)
    shutil.copytree(bench.config.data.data_dir, data)
    moved = dataclasses.replace(bench.config.data, data_dir=str(data))
    config = dataclasses.replace(bench.config, data=moved)
    file = rng.choice([path for path in _files(data) if "array_record" in path.name])
    mend = damage(file, how, rng)
    return [
        judged(bench, f"shard_{how}", workdir, mend, lambda: bench.train(workdir, config).wait())
    ]


def replaced(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """The user's file is replaced by another one while the run is down."""
    workdir, file = folder / "run", folder / "mine.npz"

    def configured(place):
        return benches.tiny_config(benches.arrays(place / "data", place / "mine.npz"), steps=40)

    def train(run):
        benches.write_arrays(bench.root / "mine.npz", 0)
        finish(bench.train(run, configured(bench.root)))

    _, expected = bench.undisturbed("arrays", train)
    benches.write_arrays(file, 0)
    config = configured(folder)
    until_saved(bench.train(workdir, config), workdir, rng.randrange(2, 30)).wait()
    benches.write_arrays(file, 1)
    return [
        judged(
            bench,
            "replaced",
            workdir,
            lambda: benches.write_arrays(file, 0),
            lambda: bench.train(workdir, config).wait(),
            expected,
        )
    ]


def clock(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """A life whose clock is years behind, among files that say that they come from the future."""
    workdir = folder / "run"
    bench.midway(workdir)
    years = rng.uniform(-5, 5)
    for path in (workdir, *workdir.rglob("*")):
        then = time.time() + rng.uniform(-5, 5) * 3e7
        os.utime(path, (then, then))
    moment = rng.uniform(0.5, 1.5) * bench.seconds

    def before():
        die_after(moment)
        _set_clock(years * 3e7)

    bench.train(workdir, before=before).wait()
    return [judged(bench, "clock", workdir, lambda: None)]


def programs(bench: Bench, rng: random.Random, folder: Path) -> list[Verdict]:
    """Killed while compiled programs are written, of which the newest is left cut off."""
    workdir, cache = folder / "run", folder / "programs"

    def start() -> Ended:
        return bench.train(workdir, cache=cache).wait()

    life = bench.train(workdir, cache=cache)
    goal = rng.randint(3, 12)
    while life.poll() is None and (not cache.exists() or len(_files(cache)) < goal):
        time.sleep(0.002)
    life.kill()
    life.wait()
    newest = max(_files(cache), key=lambda path: path.stat().st_mtime_ns)
    damage(newest, "truncated", rng)
    expected = bench.undisturbed()[1]
    wrong = what_is_wrong(bench, workdir, start(), expected)
    counts = {"lost": 1} if wrong else {"survived": 1}
    return [Verdict(fault="programs", note=wrong, **counts)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def _set_clock(seconds: float):
    """Moves the clock of this process, as Python reads it."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
