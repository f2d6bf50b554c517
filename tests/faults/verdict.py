"""What became of a run that a fault was injected into."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import Bench, End, differences
from tests.faults.lives import Ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Counts of one trial.

    Attributes:
        fault: its name.
        injected: how often it was injected.
        survived: after so many of them the run ended bit for bit as if undisturbed.
        refused: so many ended in an error that names its remedy; once it was followed, the run
            went on from its newest good checkpoint and ended as if undisturbed.
        lost: all others.
        note: what was not as it should be, or how it was refused.
    """

    fault: str
    injected: int = 1
    survived: int = 0
    refused: int = 0
    lost: int = 0
    note: str = ""

    def __post_init__(self):
        if self.injected != self.survived + self.refused + self.lost:
            raise ValueError(f"{self}: expected every fault to have one outcome")


def judged(
    bench: Bench,
    fault: str,
    workdir: Path,
    mend: Callable[[], None],
    start: Callable[[], Ended] | None = None,
    expected: End | None = None,
) -> Verdict:
    """Starts a run again after a fault, and once more after the fault is mended if need be.

    Args:
        bench: of the run.
        fault: its name.
        workdir: of the run.
        mend: does what the error says.
        start: one life, to its end; the tiny run's if not given.
        expected: end of the undisturbed run; the tiny run's if not given.
    """
    expected = expected or bench.undisturbed()[1]
    start = start or (lambda: bench.train(workdir).wait())
    first = last = start()
    if first.code:
        if not first.named:
            note = f"ended with {first.code} and no named error: {first.last_words}"
            return Verdict(fault=fault, lost=1, note=note)
        mend()
        last = start()
    found = what_is_wrong(bench, workdir, last, expected)
    if found:
        note = f"{found} (after {first.last_words})"
        return Verdict(fault=fault, lost=1, note=note)
    if first.code:
        return Verdict(fault=fault, refused=1, note=first.last_words)
    return Verdict(fault=fault, survived=1)


def what_is_wrong(
    bench: Bench, workdir: Path, last: Ended, expected: End, whole_windows: bool = True
) -> str:
    """In what a run ended otherwise than it would have; nothing if it ended equal.

    Args:
        bench: of the run.
        workdir: of the run.
        last: how its last life ended.
        expected: end of the undisturbed run.
        whole_windows: as of `differences`.
    """
    if last.code:
        return f"the last start ended with {last.code}: {last.last_words}"
    try:
        return "; ".join(differences(bench.end(workdir), expected, whole_windows))
    except (AssertionError, OSError, ValueError) as error:
        return f"its end cannot be read: {error}"
