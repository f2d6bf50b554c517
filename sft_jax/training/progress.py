"""What a training run knows beside the state on its devices."""

import dataclasses
import math
from typing import Any

from sft_jax.files.json_files import anything, integer, map_of, nullable, number, record
from sft_jax.training.optimizer import Plateau

# The lowest loss is infinite before the first validation.
_PLATEAU = record({"scale": number(least=0), "best": number(most=math.inf), "stale": integer()})
_PROGRESS = record(
    {"data": map_of(anything), "plateau": _PLATEAU},
    {"best": nullable(number()), "best_step": integer()},
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the loop knows beside the device state; saved with it as JSON.

    Attributes:
        data: position of the training data's iterator.
        plateau: state of the plateau rule.
        best: best value of the deciding metric so far, or None.
        best_step: the step it was reached at.
    """

    data: dict[str, Any]
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    best: float | None = None
    best_step: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`.

        Raises:
            ValueError: entries are missing or of other types.
        """
        _PROGRESS(given, "progress")
        return cls(**{**given, "plateau": Plateau(**given["plateau"])})
