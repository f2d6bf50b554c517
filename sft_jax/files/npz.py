"""Reader of `.npy` and `.npz` files that may be damaged or hostile.

Sizes that a file claims are checked against the file before memory is allocated, and Python objects
are never unpickled.
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

from sft_jax.files.errors import memory_limit
from sft_jax.types import DataError

_REMEDY = "restore the file, or write it again with numpy.savez"
# A header may claim 4 GiB, and NumPy allocates them before it finds fewer bytes.
MAX_HEADER_BYTES = 64 * 1024
_MAX_DEFLATE_RATIO = 1040  # the format allows 1032
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Shape and dtype of an array.
Layout = tuple[tuple[int, ...], np.dtype]


class NpyHeader(NamedTuple):
    """Header of an `.npy` file; `size` is its length in bytes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    size: int


def parse_npy_header(start: bytes) -> NpyHeader:
    """Parses the header of an `.npy` file from its first `MAX_HEADER_BYTES` bytes.

    Raises:
        ValueError: There is no header, or none that `numpy.save` writes for plain arrays.
    """
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"an array of format {version}, which numpy.save does not write")
    shape, fortran_order, dtype = _HEADER_READERS[version](stream)
    return NpyHeader(shape, fortran_order, dtype, stream.tell())


def map_npy(path: str | os.PathLike) -> np.ndarray:
    """Maps the array of an `.npy` file read-only.

    Raises:
        ValueError: The file is damaged or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            header = parse_npy_header(file.read(MAX_HEADER_BYTES))
        shape, dtype = _checked_layout(header, os.path.getsize(path))
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    array = np.memmap(path, dtype, "r", header.size, shape, order)
    check_code_points(array)
    return array


def check_code_points(array: np.ndarray):
    """Raises `ValueError` if text holds numbers beyond Unicode, which Python cannot represent."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).view(f"{array.dtype.str[0]}u4")
        if codes.max() > sys.maxunicode:
            raise ValueError(f"{codes.max()} in place of a character")


def read_npz(path: Path, remedy: str = _REMEDY) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file, by name.

    Raises:
        DataError: The file is damaged, holds Python objects, or does not fit in memory.
    """
    try:
        return load_npz(path)
    # The readers of zip, deflate and headers raise exceptions of many types for damage.
    except Exception as cause:
        reason = f"{type(cause).__name__}: {str(cause)[:300]}"
        raise DataError(
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
    """Reads like `read_npz`, but passes on the exceptions of the zip, deflate and header readers.

    Args:
        path: Path of the file.
        check: Function that raises if arrays are too large, given their layouts by name before
            anything is read. By default the total must fit in memory.

    Raises:
        ValueError: The sizes that the file claims are impossible or too large.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two arrays of one name")
        archive_size = os.path.getsize(path)
        for info in members.values():
            if not _has_possible_size(info, archive_size):
                sizes = f"{info.file_size} bytes from {info.compress_size}"
                raise ValueError(f"{info.filename}: {sizes}, more than compression can save")
        layouts = {name: _read_layout(archive, info) for name, info in members.items()}
        (check or _check_total_size)(layouts)
        return {name: _read_array(archive, info) for name, info in members.items()}


def _check_total_size(layouts: Mapping[str, Layout]):
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts.values())
    limit = memory_limit()
    if total > limit:
        raise ValueError(f"{total:,} bytes to hold in memory, at most {limit:,} can be had")


def _has_possible_size(member: zipfile.ZipInfo, archive_size: int) -> bool:
    """Returns whether the compression that NumPy uses can reach the claimed size."""
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _MAX_DEFLATE_RATIO}
    return (
        member.compress_size <= archive_size
        and member.file_size <= ratios.get(member.compress_type, 0) * member.compress_size
    )


def _read_layout(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Layout:
    with archive.open(member) as file:
        try:
            return _checked_layout(parse_npy_header(file.read(MAX_HEADER_BYTES)), member.file_size)
        except ValueError as error:
            raise ValueError(f"{member.filename}: {error}") from error


def _checked_layout(header: NpyHeader, file_size: int) -> Layout:
    """Returns shape and dtype if header and values together take `file_size` bytes."""
    shape, _, dtype, header_size = header
    if dtype.hasobject:
        raise ValueError("Python objects, which could run code")
    count, num_bytes = math.prod(shape), file_size - header_size
    if min(shape, default=0) < 0 or count * dtype.itemsize != num_bytes:
        raise ValueError(f"{num_bytes} bytes for {dtype} of shape {shape}")
    if dtype.itemsize == 0 and count:
        # Values of zero bytes could claim to be any number of rows.
        raise ValueError(f"{count} texts of length 0")
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    check_code_points(array)
    return array
