"""Arrays from `.npy` and `.npz` files of somebody else, without running what is in them.

What a file says of its sizes is held against the file before memory is taken for it, and Python
objects are never unpickled.
"""

import io
import math
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sft_jax.files.memory import memory_limit
from sft_jax.types import DataError

_AGAIN = "restore the file, or write it again with numpy.savez"
# Of an `.npy` file; one may claim 4 GiB, for which memory is taken before fewer bytes are found.
LONGEST_HEADER = 64 * 1024
_DEFLATE_AT_BEST = 1040  # bytes from one; the format allows 1032
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Shape and dtype.
Layout = tuple[tuple[int, ...], np.dtype]


class NpyHeader(NamedTuple):
    """What stands before the values of an `.npy` file, and how many bytes that takes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    size: int


def parse_npy_header(start: bytes) -> NpyHeader:
    """The header of an `.npy` file out of its first `LONGEST_HEADER` bytes.

    Raises:
        ValueError: there is none, or one that `numpy.save` does not write for plain arrays.
    """
    head = io.BytesIO(start)
    version = np.lib.format.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f"an array of format {version}, which numpy does not save them in")
    shape, fortran_order, dtype = _HEADERS[version](head)
    return NpyHeader(shape, fortran_order, dtype, head.tell())


def map_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an `.npy` file, mapped read-only.

    Raises:
        ValueError: the file is damaged or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            header = parse_npy_header(file.read(LONGEST_HEADER))
        shape, dtype = _checked_layout(header, os.path.getsize(path))
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    array = np.memmap(path, dtype, "r", header.size, shape, order)
    check_letters(array)
    return array


def check_letters(array: np.ndarray):
    """Raises `ValueError` for texts with numbers of no letters, of which Python makes no text."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).view(f"{array.dtype.str[0]}u4")
        if codes.max() > sys.maxunicode:
            raise ValueError(f"{codes.max()} in place of a letter")


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


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]):
    """Writes arrays as a compressed `.npz`, atomically."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # names are not its flags
    os.replace(partial, path)


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
        try:
            return _checked_layout(parse_npy_header(file.read(LONGEST_HEADER)), member.file_size)
        except ValueError as error:
            raise ValueError(f"{member.filename}: {error}") from error


def _checked_layout(header: NpyHeader, there: int) -> Layout:
    """Shape and dtype, where header and values are `there` bytes as they should be."""
    shape, _, dtype, size = header
    if dtype.hasobject:
        raise ValueError("Python objects, which could run code")
    count, found = math.prod(shape), there - size
    if min(shape, default=0) < 0 or count * dtype.itemsize != found:
        raise ValueError(f"{found} bytes for {dtype} of shape {shape}")
    if dtype.itemsize == 0 and count:
        # Takes no bytes, and may claim to be any number of rows.
        raise ValueError(f"{count} texts of no letters")
    return shape, dtype


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    check_letters(array)
    return array
