"""Records of one split whose features are read row by row from their file."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num

from sft_jax.data.records import ModalityInfo, Record
from sft_jax.files import Rows

# Size of the parts in which an array is scanned.
CHUNK_BYTES = 32 << 20

_NON_FINITE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "-inf": np.isneginf,
    "inf": np.isposinf,
    "NaN": np.isnan,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceTable(Sequence):
    """Records of one split; features are read and cleaned when a record is accessed.

    Attributes:
        inputs: `{m: [n, t, f]}` features.
        mask: `{m: [n, t]}`, true at real time steps.
        label: `[n]` classes.
        value: `[n]` numbers, such as sentiments; NaN if there are none.
        id: Name of each row.
        group: Group of each row.
        repairs: Number of non-finite values by modality and kind.
        labels: `[n, l]` 1, 0, or NaN (unknown) for each label; None if there are none.
    """

    inputs: dict[str, Rows]
    mask: dict[str, Bool[np.ndarray, "n _"]]
    label: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]
    id: list[str]
    group: list[str]
    repairs: dict[str, int]
    labels: Float32[np.ndarray, "n l"] | None = None

    @functools.cached_property
    def rows(self) -> Int[np.ndarray, "k"]:
        """Rows with a real time step in some modality; the others are no records."""
        return np.flatnonzero(np.any([real.any(1) for real in self.mask.values()], axis=0))

    @property
    def num_empty(self) -> int:
        """Number of rows without a real time step."""
        return len(self.label) - len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """Returns the record at `index`."""
        row = int(self.rows[index])
        inputs = {}
        for name, values in self.inputs.items():
            inputs[name], _ = clean(values[row])
            inputs[name][~self.mask[name][row]] = 0
        record = Record(
            inputs=inputs,
            mask={name: real[row] for name, real in self.mask.items()},
            label=int(self.label[row]),
            value=float(self.value[row]),
            id=self.id[row],
            group=self.group[row],
        )
        if self.labels is not None:
            record["labels"] = self.labels[row]
        return record


def modality_info(name: str, values: Rows) -> ModalityInfo:
    """Returns length and width of features `[n, t, f]`."""
    _, length, width = values.shape
    return ModalityInfo(name=name, length=int(length), feature_dim=int(width), kind="feature")


def scan(
    values: Rows, mask: Bool[np.ndarray, "n t"] | None = None
) -> tuple[Bool[np.ndarray, "n t"], dict[str, int]]:
    """Reads all features `[n, t, f]` once, in chunks.

    Returns:
        The mask, and the number of non-finite values in real steps by kind. If no mask is given,
        steps with a feature other than 0 are real, after non-finite values were set to 0.
    """
    result = np.zeros(values.shape[:2], bool) if mask is None else mask
    counts: Counter[str] = Counter()
    for part in _chunks(values):
        cleaned, non_finite = clean(values[part], None if mask is None else mask[part])
        if mask is None:
            result[part] = cleaned.any(2)
        counts.update(non_finite)
    return result, dict(counts)


def _chunks(rows: Rows) -> Iterator[slice]:
    """Yields slices that cover all rows, each of at most `CHUNK_BYTES` or one row."""
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    size = max(1, CHUNK_BYTES // max(row_bytes, 1))
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def clean(
    values: Num[np.ndarray, "*n t f"], mask: Bool[np.ndarray, "*n t"] | None = None
) -> tuple[Float32[np.ndarray, "*n t f"], dict[str, int]]:
    """Converts features to float32, with 0 for every value that is not finite.

    A float64 beyond the range of float32 counts as infinite.

    Returns:
        A copy, and the number of `-inf`, `inf` and `NaN` in real steps; kinds that do not occur are
        left out.
    """
    with np.errstate(over="ignore"):
        cleaned = values.astype(np.float32)
    bad = ~np.isfinite(cleaned)
    if not bad.any():
        return cleaned, {}
    counted = cleaned[bad if mask is None else bad & mask[..., None]]
    counts = {kind: int(np.count_nonzero(test(counted))) for kind, test in _NON_FINITE.items()}
    cleaned[bad] = 0
    return cleaned, {kind: count for kind, count in counts.items() if count}
