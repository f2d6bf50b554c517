"""`example.npz`: one recording with the tokens that the model kept of it.

For each modality `signal/<m>` `[t, f]`, `kept/<m>` `[k]` (token indices, -1 in empty slots),
`saliency/<m>` `[k]` and `span/<m>` `[tokens, 2]` (first time step and one past the last);
`sampling_rate` (time steps a second) and `title`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sft_jax.files.npz import read_npz, write_npz
from sft_jax.runs.array_checks import checked_entry, misfit

_REMEDY = "write it again with `python -m sft_jax.evaluate`"


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording and the tokens that the model kept of it.

    Attributes:
        signals: Signal `[t, f]` of each modality.
        kept: Indices `[k]` of the kept tokens of each modality, -1 in empty slots.
        saliency: Saliency `[k]` of the kept tokens, by modality, of pools that compute one.
        spans: Time steps `[tokens, 2]` `(start, stop)` of every token, by modality.
        sampling_rate: Time steps a second.
        title: Heading of the figure.
    """

    signals: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    saliency: Mapping[str, np.ndarray]
    spans: Mapping[str, np.ndarray]
    sampling_rate: float
    title: str


def save_example(path: Path, example: Example) -> Path:
    """Writes an example as `.npz` and returns `path`."""
    entries = {
        "sampling_rate": np.asarray(example.sampling_rate, np.float64),
        "title": np.asarray(example.title),
    }
    for prefix, arrays in (
        ("signal", example.signals),
        ("kept", example.kept),
        ("saliency", example.saliency),
        ("span", example.spans),
    ):
        entries |= {f"{prefix}/{name}": array for name, array in arrays.items()}
    write_npz(path, entries)
    return path


def load_example(path: Path) -> Example:
    """Reads an example; raises `DataError` if an entry is missing or cannot be drawn."""
    entries = read_npz(path, _REMEDY)
    names = [key.removeprefix("signal/") for key in entries if key.startswith("signal/")]
    if not names:
        raise misfit(path, "signal/<modality>", sorted(entries), "at least one signal", _REMEDY)
    _check(path, names, entries)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {m: entries[f"{prefix}/{m}"] for m in names if f"{prefix}/{m}" in entries}

    return Example(
        signals=part("signal"),
        kept=part("kept"),
        saliency=part("saliency"),
        spans=part("span"),
        sampling_rate=float(entries["sampling_rate"]),
        title=str(entries["title"]),
    )


def _check(path: Path, names: list[str], entries: Mapping[str, np.ndarray]):
    entry = functools.partial(checked_entry, path, entries, remedy=_REMEDY)
    for name in names:
        entry(f"kept/{name}", 1, "iu")
        spans = entry(f"span/{name}", 2, "iu")
        if spans.shape[1] != 2:
            raise misfit(path, f"span/{name}", f"shape {spans.shape}", "[tokens, 2]", _REMEDY)
        drawn = {f"signal/{name}": 2, f"saliency/{name}": 1}
        for key, num_axes in drawn.items():
            if key in entries:
                values = entry(key, num_axes, "fiu")
                if not values.size or not np.isfinite(values).all():
                    found = "none, or values that are not finite"
                    raise misfit(path, key, found, "finite numbers", _REMEDY)
    rate = entry("sampling_rate", 0, "fiu")
    if not 1e-9 <= rate <= 1e12:
        raise misfit(path, "sampling_rate", rate, "a positive number", _REMEDY)
    entry("title", 0, "U")
