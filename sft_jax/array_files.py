"""Arrays from `.npz` files that somebody else may have written, without running what is in them.

What a file says of its sizes is held against the file before memory is taken for it, and Python
objects are never unpickled.
"""

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from sft_jax.types import DataError

_AGAIN = "restore the file, or write it again with numpy.savez"
_LONGEST_HEADER = 64 * 1024
_DEFLATE_AT_BEST = 1040  # bytes from one; the format allows 1032
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
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(set(names)) < len(names):
                raise ValueError("two arrays of one name")
            if any(not _is_credible(member, path.stat().st_size) for member in members):
                raise ValueError("an array that unpacks to more than its bytes can hold")
            total = sum(_size(archive, member) for member in members)
            if total > memory():
                raise ValueError(f"arrays of {total} bytes, of which {memory()} are free in memory")
            return {
                name: _read(archive, member) for name, member in zip(names, members, strict=True)
            }
    # Damage surfaces as an error of the zip, deflate or header reader, of many types.
    except Exception as cause:
        reason = f"{type(cause).__name__}: {str(cause)[:300]}"
        raise error(
            f"{path}: found no readable .npz ({reason}), expected arrays of numbers or text by "
            f"name; {remedy}"
        ) from cause


def _is_credible(member: zipfile.ZipInfo, there: int) -> bool:
    """Whether so many bytes can come out of what is stored, as numpy stores it."""
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_AT_BEST}
    return (
        member.compress_size <= there
        and member.file_size <= ratios.get(member.compress_type, 0) * member.compress_size
    )


def memory() -> int:
    """Bytes of memory that can be had at most."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass  # no Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of an array, as its header has them and the archive confirms."""
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
    # Text of no letters takes no bytes, and may claim to be any number of rows.
    return count * max(dtype.itemsize, 1)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
