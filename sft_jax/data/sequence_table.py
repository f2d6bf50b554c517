"""A split of sequences that are read row by row from where they lie."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num

from sft_jax.data.records import ModalityInfo, Record
from sft_jax.files.rows import Rows

# How much of an array is looked at together when all of it is looked at once.
CHUNK_BYTES = 32 << 20

_KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "-inf": np.isneginf,
    "inf": np.isposinf,
    "NaN": np.isnan,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceTable(Sequence):
    """Records of one split; features are read and mended when a record is asked for.

    Attributes:
        inputs: `{m: [n, t, f]}`.
        mask: `{m: [n, t]}`, true where a time step is real.
        label: `[n]` classes.
        value: `[n]` numbers behind them, NaN where there are none.
        id, group: of every row.
        repairs: how many values of each modality and kind were not finite.
    """

    inputs: dict[str, Rows]
    mask: dict[str, Bool[np.ndarray, "n _"]]
    label: Int[np.ndarray, "n"]
    value: Float[np.ndarray, "n"]
    id: list[str]
    group: list[str]
    repairs: dict[str, int]

    @functools.cached_property
    def rows(self) -> Int[np.ndarray, "k"]:
        """Rows that have a real time step in some modality; the others are no records."""
        return np.flatnonzero(np.any([real.any(1) for real in self.mask.values()], axis=0))

    @property
    def num_empty(self) -> int:
        """Rows without a real time step."""
        return len(self.label) - len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """The record at `index`."""
        row = int(self.rows[index])
        inputs = {}
        for name, values in self.inputs.items():
            inputs[name], _ = clean(values[row])
            inputs[name][~self.mask[name][row]] = 0
        return Record(
            inputs=inputs,
            mask={name: real[row] for name, real in self.mask.items()},
            label=int(self.label[row]),
            value=float(self.value[row]),
            id=self.id[row],
            group=self.group[row],
        )


def modality_info(name: str, values: Rows) -> ModalityInfo:
    """Length and width of an array `[n, t, f]`."""
    return ModalityInfo(
        name=name,
        length=int(values.shape[1]),
        feature_dim=int(values.shape[2]),
        kind="feature",
    )


def inspect(
    values: Rows, mask: Bool[np.ndarray, "n t"] | None = None
) -> tuple[Bool[np.ndarray, "n t"], dict[str, int]]:
    """Reads all of `values` once, a few rows at a time.

    Args:
        values: `[n, t, f]`.
        mask: real time steps, where they are known.

    Returns:
        `mask`, or where it is None the steps that have a feature other than 0 once values that are
        not finite are 0; and how many there were of these, by kind, in real steps (or all).
    """
    found = np.zeros(values.shape[:2], bool) if mask is None else mask
    counts: dict[str, int] = {}
    for part in chunks(values):
        cleaned, bad = clean(values[part], None if mask is None else mask[part])
        if mask is None:
            found[part] = cleaned.any(2)
        for kind, count in bad.items():
            counts[kind] = counts.get(kind, 0) + count
    return found, counts


def chunks(rows: Rows) -> Iterator[slice]:
    """Slices that cover all rows, each of at most `CHUNK_BYTES` or one row."""
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    step = max(1, CHUNK_BYTES // max(row_bytes, 1))
    return (slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step))


def clean(
    values: Num[np.ndarray, "*n t f"], mask: Bool[np.ndarray, "*n t"] | None = None
) -> tuple[Float32[np.ndarray, "*n t f"], dict[str, int]]:
    """A float32 copy with 0 for every value that is not finite.

    Args:
        values: numbers of any type; a float64 beyond float32 counts as an infinity.
        mask: steps whose values are counted; all where None.

    Returns:
        The copy, and how many `-inf`, `inf` and `NaN` there were; kinds without any are left out.
    """
    with np.errstate(over="ignore"):
        cleaned = values.astype(np.float32)
    bad = ~np.isfinite(cleaned)
    if not bad.any():
        return cleaned, {}
    counted = bad if mask is None else bad & mask[..., None]
    counts = {kind: int(np.count_nonzero(test(cleaned[counted]))) for kind, test in _KINDS.items()}
    cleaned[bad] = 0
    return cleaned, {kind: count for kind, count in counts.items() if count}
