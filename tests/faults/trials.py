"""All faults: what they are called, how often they are tried, and who tries them."""

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

from tests.faults import damage, devices, kills, surroundings
from tests.faults.bench import Bench
from tests.faults.verdict import Verdict

KILLS_PER_RUN = 25
KILLS = (kills.ANY, kills.WRITE, kills.RESTORE)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of trial.

    Attributes:
        titles: of the rows of the table that its verdicts go into, by the name of the fault.
        count: trials.
        attempt: `(bench, generator, folder, number of the trial) -> verdicts`.
    """

    titles: dict[str, str]
    count: int
    attempt: Callable[[Bench, random.Random, Path, int], list[Verdict]]


def _killed(bench: Bench, rng: random.Random, folder: Path, _: int) -> list[Verdict]:
    return kills.killed_run(bench, rng, folder, KILLS_PER_RUN)


def _terminated(bench: Bench, rng: random.Random, folder: Path, _: int) -> list[Verdict]:
    return kills.terminated_run(bench, rng, folder, 6)


def _damaged(part: Callable[..., list[Verdict]], how: str):
    return lambda bench, rng, folder, _: part(how, bench, rng, folder)


def _plain(attempt: Callable[..., list[Verdict]]):
    return lambda bench, rng, folder, _: attempt(bench, rng, folder)


def _one(name: str, title: str, count: int, attempt: Callable) -> dict[str, Fault]:
    return {name: Fault({name: title}, count, attempt)}


FAULTS = {
    "kill": Fault(
        {
            kills.ANY: "SIGKILL at any moment of a life",
            kills.WRITE: "SIGKILL in the middle of a checkpoint write",
            kills.RESTORE: "SIGKILL in the middle of a restore",
        },
        0,
        _killed,
    ),
    **_one("sigterm", "SIGTERM at any moment of a life", 4, _terminated),
    **_one("full_disk", "full disk", 6, _plain(surroundings.full_disk)),
    **_one("read_only", "read-only folder", 4, _plain(surroundings.read_only)),
    **{
        name: fault
        for how, title in zip(
            damage.HOW, ("flipped byte", "truncated file", "missing file"), strict=True
        )
        for name, fault in _one(
            f"checkpoint_{how}",
            f"{title} in the newest checkpoint",
            8,
            _damaged(damage.checkpoint, how),
        ).items()
    },
    **{
        name: fault
        for how, title in zip(
            damage.HOW, ("flipped byte in a", "truncated", "missing"), strict=True
        )
        for name, fault in _one(
            f"shard_{how}", f"{title} shard of the data", 3, _damaged(damage.shard, how)
        ).items()
    },
    **_one("two_trainers", "two trainers on one run folder", 4, _plain(surroundings.two_trainers)),
    **_one("replaced", "data file replaced while the run is down", 3, _plain(damage.replaced)),
    **_one("clock", "clock set back, files from the future", 4, _plain(damage.clock)),
    **_one("programs", "SIGKILL while compiled programs are kept", 3, _plain(damage.programs)),
    **_one("devices", "another number of devices (8, 2, 4)", 4, devices.counts_change),
    **_one("process_dies", "one of two processes dies", 2, devices.one_dies),
    **_one("process_hangs", "one of two processes hangs", 2, devices.one_hangs),
}


@functools.cache
def titles() -> dict[str, str]:
    """Rows of the table, in order."""
    return {name: title for fault in FAULTS.values() for name, title in fault.titles.items()}
