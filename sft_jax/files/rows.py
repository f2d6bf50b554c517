"""Arrays that are read a few rows at a time, in memory or from a file."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Rows(Protocol):
    """Array `[n, ...]` that is indexed by its first axis: of NumPy, of HDF5, or a class below."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(n, ...)`."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: int | slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class FileArray:
    """Array that stays in its file; indexing reads the requested rows.

    The file is mapped anew for each access, so that pages read before do not count as memory of the
    process.

    Attributes:
        path: Absolute path of the file.
        offset: Position of the first value, in bytes.
        dtype: Dtype of the values.
        shape: Shape of the array.
        order: Memory order of the values in the file, `C` or `F`.
    """

    path: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """Returns a copy of the rows."""
        return np.array(
            np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)[rows]
        )


class ListArray:
    """Non-empty list of arrays of one shape and dtype, indexed as one array without copying."""

    def __init__(self, items: Sequence[Rows]):
        self._items = items
        self.shape = (len(items), *items[0].shape)
        self.dtype = items[0].dtype

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """Returns a copy of the rows."""
        if isinstance(rows, slice):
            return np.stack([item[:] for item in self._items[rows]])
        return np.array(self._items[rows][:])


def as_rows(value: Any) -> Rows | None:
    """Returns an array, or a list that forms one, for reading by rows; None for anything else."""
    if isinstance(value, list | tuple):
        arrays = [item for item in value if isinstance(item, np.ndarray | FileArray)]
        if arrays and len(arrays) == len(value):
            layouts = {(item.shape, item.dtype) for item in arrays}
            return ListArray(arrays) if len(layouts) == 1 and arrays[0].shape else None
        # In an array, every text would take as much memory as the longest.
        if contains_text(value):
            return None
        try:
            return np.asarray(value)
        # Nested lists of several lengths.
        except ValueError:
            return None
    return value if isinstance(value, np.ndarray | FileArray) else None


def contains_text(value: Any) -> bool:
    """Returns whether a value is text, or a nested list with text in it."""
    if not isinstance(value, list | tuple):
        return isinstance(value, str | bytes)
    # Types are compared first: a long list of numbers has few of them.
    types = set(map(type, value))
    if any(issubclass(entry, str | bytes) for entry in types):
        return True
    lists = tuple(entry for entry in types if issubclass(entry, list | tuple))
    return bool(lists) and any(contains_text(entry) for entry in value if isinstance(entry, lists))


def describe_value(value: Any) -> str:
    """Describes type and shape of a value, for messages."""
    if isinstance(value, list | tuple):
        inner = sorted({describe_value(item) for item in value})
        first = inner[0] if inner else "nothing"
        others = " and others" if len(inner) > 1 else ""
        return f"a {type(value).__name__} of {len(value)}, of {first}{others}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def to_text(value: Any) -> str:
    """Converts a name to text; bytes are UTF-8, or else Latin-1."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin1")
    return str(value)
