"""Arrays that are read a few rows at a time, wherever they lie."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Rows(Protocol):
    """What is needed of an array `[n, ...]`: numpy's, HDF5's, and those below have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, ...)`."""

    @property
    def dtype(self) -> np.dtype:
        """Of its values."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: int | slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class FileArray:
    """An array that stays in its file; indexing reads the rows asked for.

    The file is mapped anew each time, so that pages once read do not count as the process's own.

    Attributes:
        path: the file.
        offset: where the values start, in bytes.
        dtype: of the values.
        shape: of the array.
        order: `C` or `F`, how values follow each other in the file.
    """

    path: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """A copy of these rows."""
        return np.array(
            np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)[rows]
        )


class ListArray:
    """A list of arrays of one shape and type, seen as one array."""

    def __init__(self, items: Sequence[Rows]):
        """Wraps `items`, of which there is at least one; they are not copied."""
        self._items = items
        self.shape = (len(items), *items[0].shape)
        self.dtype = items[0].dtype

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """A copy of these rows."""
        if isinstance(rows, slice):
            return np.stack([item[:] for item in self._items[rows]])
        return np.array(self._items[rows][:])


def as_rows(value: Any) -> Rows | None:
    """An array, or a list that makes one, to be read by rows; None of anything else."""
    if isinstance(value, list | tuple):
        arrays = [item for item in value if isinstance(item, np.ndarray | FileArray)]
        if arrays and len(arrays) == len(value):
            same = {(item.shape, item.dtype) for item in arrays}
            return ListArray(arrays) if len(same) == 1 and arrays[0].shape else None
        # As an array, every text is as long as the longest.
        if holds_text(value):
            return None
        try:
            return np.asarray(value)
        # Nested lists of several lengths.
        except ValueError:
            return None
    return value if isinstance(value, np.ndarray | FileArray) else None


def holds_text(value: Any) -> bool:
    """Whether it is text, or a list, of lists to any depth, with text in it."""
    if not isinstance(value, list | tuple):
        return isinstance(value, str | bytes)
    # By types, of which a long list of numbers has few.
    kinds = set(map(type, value))
    if any(issubclass(kind, str | bytes) for kind in kinds):
        return True
    lists = tuple(kind for kind in kinds if issubclass(kind, list | tuple))
    return any(holds_text(entry) for entry in value if isinstance(entry, lists)) if lists else False


def describe(value: Any) -> str:
    """Type and shape of what was found, for messages."""
    if isinstance(value, list | tuple):
        inner = {describe(item) for item in value}
        some = sorted(inner)[0] if inner else "nothing"
        return f"a {type(value).__name__} of {len(value)}, of {some}" + (
            " and others" if len(inner) > 1 else ""
        )
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def text(value: Any) -> str:
    """A part of a name; bytes are UTF-8, or else Latin-1."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin1")
    return str(value)


def absolute(path: str | os.PathLike) -> str:
    """`path` in full, so that it holds when the working directory changes."""
    return os.path.abspath(path)
