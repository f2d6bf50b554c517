"""Checks of the arrays in stored `.npz` files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.types import DataError

_KINDS = {
    "iu": "integers",
    "f": "floats",
    "fiu": "numbers",
    "U": "text",
    "iuU": "text or integers",
}
_TOLERANCE = 1e-2  # of a sum of probabilities: rows rounded to bfloat16 pass


def checked_entry(
    path: Path,
    entries: Mapping[str, np.ndarray],
    name: str,
    num_axes: int,
    kinds: str,
    remedy: str,
) -> np.ndarray:
    """Returns an entry of a file.

    Args:
        path: Path of the file.
        entries: Content of the file.
        name: Name of the entry.
        num_axes: Number of axes it must have.
        kinds: Kinds of dtype it may have, a key of `_KINDS`.
        remedy: Advice for the error message.

    Raises:
        DataError: The entry is missing, or has another number of axes or dtype.
    """
    if name not in entries:
        raise misfit(path, name, f"{sorted(entries)}", f"an entry {name} as well", remedy)
    array = entries[name]
    if array.ndim != num_axes or array.dtype.kind not in kinds:
        found = f"{array.dtype} of shape {array.shape}"
        raise misfit(path, name, found, f"{num_axes} axes of {_KINDS[kinds]}", remedy)
    return array


def check_distributions(path: Path, probabilities: np.ndarray, label: np.ndarray, remedy: str):
    """Raises `DataError` unless rows `[n, c]` are distributions and labels `[n]` are classes."""
    num_classes = probabilities.shape[1]
    if label.size and not 0 <= label.min() <= label.max() < num_classes:
        found = f"classes {label.min()} to {label.max()}"
        raise misfit(path, "label", found, f"0 to {num_classes - 1}", remedy)
    rows = probabilities.astype(np.float64)
    valid = np.asarray(np.isfinite(rows).all(axis=1) & (rows >= 0).all(axis=1))
    valid[valid] = np.abs(rows[valid].sum(axis=1) - 1) < _TOLERANCE
    if not valid.all():
        found = f"{(~valid).sum()} rows that are no distribution"
        raise misfit(path, "probabilities", found, "non-negative numbers that sum to 1", remedy)


def misfit(path: Path, name: str, found: Any, expected: str, remedy: str) -> DataError:
    """The error for an entry that is not as expected."""
    return DataError(f"{path}: {name}: found {found}, expected {expected}; {remedy}")


def same_values(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays are equal, where NaN equals NaN; or both are missing."""
    if a is None or b is None:
        return a is b
    nan = a.dtype.kind == "f" and b.dtype.kind == "f"
    return np.array_equal(a, b, equal_nan=nan)
