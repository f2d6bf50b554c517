"""All faults: what they are called, how often they are tried, and who tries them."""

import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

from tests.faults import kills
from tests.faults.bench import Bench
from tests.faults.verdict import Verdict

KILLS_PER_RUN = 15
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
}


@functools.cache
def titles() -> dict[str, str]:
    """Rows of the table, in order."""
    return {name: title for fault in FAULTS.values() for name, title in fault.titles.items()}
