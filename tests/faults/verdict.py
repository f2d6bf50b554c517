"""What became of a run that a fault was injected into."""

import dataclasses


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
