"""Arrays from `.npz` files that somebody else may have written, without running what is in them.

What a file says of its sizes is held against the file before memory is taken for it, and Python
objects are never unpickled.
"""

import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sft_jax.memory import memory_limit
from sft_jax.types import DataError

_AGAIN = "restore the file, or write it again with numpy.savez"
_LONGEST_HEADER = 64 * 1024
_DEFLATE_AT_BEST = 1040  # bytes from one; the format allows 1032
# Shape and dtype.
Layout = tuple[tuple[int, ...], np.dtype]
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: Path, remedy: str = _AGAIN, error: type[Exception] = DataError
) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read.
        error: what is raised then: for a file that is damaged, that holds Python objects, or whose
            arrays would not fit in memory.
    """
    try:
        return load_npz(path)
    # Damage surfaces as an error of the zip, deflate or header reader, of many types.
    except Exception as cause:
        reason = f"{type(cause).__name__}: {str(cause)[:300]}"
        raise error(
            f"{path}: found no readable .npz ({reason}), expected arrays of numbers or text by "
            f"name; {remedy}"
        ) from cause


def load_npz(
    path: str | os.PathLike, check: Callable[[Mapping[str, Layout]], None] | None = None
) -> dict[str, np.ndarray]:
    """As `read_npz`, with whatever the readers of zip, deflate and headers raise of damage.

    Args:
        path: of the file.
        check: refuses what is too large, given shape and dtype by name, before anything is read;
            without it, so do we.

    Raises:
        ValueError: what the file says of itself cannot be, or is too large.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two arrays of one name")
        there = os.path.getsize(path)
        for info in members.values():
            if not _is_credible(info, there):
                sizes = f"{info.file_size} bytes out of {info.compress_size}"
                raise ValueError(f"{info.filename}: {sizes}, more than packing can save")
        (check or _check)({name: _layout(archive, info) for name, info in members.items()})
        return {name: _read(archive, member) for name, member in members.items()}


def _check(layouts: Mapping[str, Layout]):
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts.values())
    limit = memory_limit()
    if total > limit:
        raise ValueError(f"{total:,} bytes to hold in memory, at most {limit:,} can be had")


def _is_credible(member: zipfile.ZipInfo, there: int) -> bool:
    """Whether so many bytes can come out of what is stored, as numpy stores it."""
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_AT_BEST}
    return (
        member.compress_size <= there
        and member.file_size <= ratios.get(member.compress_type, 0) * member.compress_size
    )


def _layout(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Layout:
    """Shape and dtype of an array, as its header has them and the archive confirms."""
    with archive.open(member) as file:
        head = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f"{member.filename}: an array of format {version}")
    shape, _, dtype = _HEADERS[version](head)
    if dtype.hasobject:
        raise ValueError(f"{member.filename}: Python objects, which could run code")
    count, found = math.prod(shape), member.file_size - head.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != found:
        raise ValueError(f"{member.filename}: {found} bytes for {dtype} of shape {shape}")
    if dtype.itemsize == 0 and count:
        # Takes no bytes, and may claim to be any number of rows.
        raise ValueError(f"{member.filename}: {count} texts of no letters")
    return shape, dtype


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
