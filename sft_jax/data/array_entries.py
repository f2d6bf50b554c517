"""The entries of a user's own arrays: found, and loaded if they fit in memory."""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_jax.files.errors import check_fits, layout_error
from sft_jax.files.npz import Layout, load_npz, map_npy
from sft_jax.types import DataError

# Samples that are converted at a time.
CHUNK = 1024


class SourceFiles(NamedTuple):
    """Where arrays lie: `root`, and for a directory the file of every entry."""

    root: Path
    entries: dict[str, Path]


def source_files(path: str | os.PathLike) -> SourceFiles:
    """The `.npz` file, or the directory and its `.npy` files by entry (`rgb`, `mask/rgb`).

    Raises:
        DataError: there is neither.
    """
    given = os.fspath(path)
    root = Path(given).expanduser()
    if given and root.is_dir():
        entries = {
            file.relative_to(root).with_suffix("").as_posix(): file
            for file in sorted(root.rglob("*.npy"))
            if file.is_file()
        }
        return SourceFiles(root, entries)
    if root.is_file() and root.suffix == ".npz":
        return SourceFiles(root, {})
    raise layout_error(
        given or "data.options.path",
        "path",
        "a file of another kind" if root.is_file() else f"nothing at {given!r}",
        "an .npz file or a directory of .npy files",
        "set data.options.path",
    )


def load_entries(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a source by entry; directories are mapped, for only one copy in memory.

    Raises:
        DataError: there is no such source, it is damaged or holds Python objects, or its arrays
            would not fit in memory.
    """
    root, files = source_files(path)
    try:
        if root.is_file():
            return load_npz(root, functools.partial(_check_archive, root))
        found = {key: map_npy(file) for key, file in files.items()}
    except DataError:
        raise
    # Truncation and damage surface as errors of the zip and header readers, of many types.
    except Exception as error:
        raise layout_error(
            str(path),
            "file",
            f"{type(error).__name__}: {error}",
            "complete arrays of numbers or text, not Python objects",
            "save it again with np.savez or np.save; text as np.array(names, dtype=str)",
        ) from error
    needed = _float_bytes({key: (values.shape, values.dtype) for key, values in found.items()})
    check_fits(needed, root, "folder", "give fewer samples")
    return found


def as_array(values: Any, key: str, where: str) -> np.ndarray:
    """`values` as an array of numbers, truth values or text.

    Lists, arrays of JAX and columns of pandas are converted. Python objects become numbers or text
    where all of them are.

    Args:
        values: Anything that NumPy can make an array of.
        key: Name of the entry, for error messages.
        where: Name of the file, for error messages.

    Raises:
        DataError: NumPy makes no such array of it.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufUS":
        return values
    wanted = "an array of numbers or text, or nested lists of equal lengths"
    remedy = "pad sequences to one length with length/<m>, and fill in what is missing"
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        found = f"{type(values).__name__} ({error})"
        raise layout_error(where, key, found, wanted, remedy) from error
    if array.dtype.kind == "O":
        array = _of_objects(array)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize <= 2:
        # Numbers of ml_dtypes, such as bfloat16, which NumPy has no kind for.
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufUS":
        found = f"{type(values).__name__} of {array.dtype}"
        raise layout_error(where, key, found, wanted, remedy)
    return array


def _of_objects(array: np.ndarray) -> np.ndarray:
    """The array with a type for what it holds; as it is where that is mixed or no number or text.

    Text and numbers are not mixed, since NumPy would write a number (or a NaN) as text.
    """
    flat = array.reshape(-1).tolist()
    for kinds in (str, bytes, bool | np.bool_, int | np.integer, int | float | np.number):
        if flat and all(isinstance(value, kinds) for value in flat):
            return np.asarray(flat).reshape(array.shape)
    return array


def _check_archive(path: Path, layouts: Mapping[str, Layout]):
    # All of them as they are (numpy fills each from the stream), beside what becomes of them with
    # a mask of a byte a step, and what the largest takes while it is converted. The peak of the
    # resident set grows by that, within 1 % for 200 MB of float64, of float32 and of ids.
    stored = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts.values())
    masks = sum(math.prod(shape[:2]) for shape, _ in layouts.values())
    needed = (
        stored
        + _float_bytes(layouts)
        + masks
        + max(map(_passing_bytes, layouts.values()), default=0)
    )
    check_fits(needed, path, "file", "give fewer samples, or a folder of .npy files")


def _passing_bytes(layout: Layout) -> int:
    """What converting an array takes for a while: two truths a value of a chunk, or all ids."""
    shape, dtype = layout
    if len(shape) == 3:
        return 2 * min(shape[0], CHUNK) * math.prod(shape[1:])
    return math.prod(shape) * dtype.itemsize


def _float_bytes(layouts: Mapping[str, Layout]) -> int:
    """What arrays take as float32."""
    return 4 * sum(math.prod(shape) for shape, _ in layouts.values())
