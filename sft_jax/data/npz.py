"""Archives of arrays, whose sizes are looked at before anything is read."""

import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from sft_jax.data.memory import check_fits

# How many bytes a compressed one can stand for.
_LARGEST_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_SUFFIX = ".npy"


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Every header is read before any array is: an array of Python objects, sizes that are not those
    of the values behind them, and arrays that together would not fit in memory are refused.

    Raises:
        DataError: they would not fit.
        ValueError: the file is not what it should be, as are the errors of `zipfile`.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two entries of one name")
        headers = {}
        for name, info in members.items():
            with archive.open(info) as stream:
                headers[name] = _header(stream, info)
        check_fits(
            array_bytes(headers, copies=2),
            path,
            "file",
            "give fewer samples, or a folder of .npy files",
        )
        found = {}
        for name, info in members.items():
            with archive.open(info) as stream:
                found[name] = npy_format.read_array(stream, allow_pickle=False)
        return found


def array_bytes(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], copies: int = 0) -> int:
    """Bytes that arrays `(shape, dtype)` take as float32, and in `copies` as they are."""
    return sum(math.prod(shape) * (4 + copies * dtype.itemsize) for shape, dtype in arrays.values())


def _header(stream: Any, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type, if they are those of the values that follow."""
    version = npy_format.read_magic(stream)
    # The third version differs in the names of fields alone, and arrays here have none.
    first = version == (1, 0)
    read = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} is an array of Python objects")
    stored = info.file_size - stream.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != stored:
        raise ValueError(f"{info.filename}: {stored} bytes for {dtype} of shape {shape}")
    ratio = _LARGEST_RATIOS.get(info.compress_type, math.inf)
    if info.file_size > info.compress_size * ratio + 1024:
        raise ValueError(f"{info.filename}: {info.file_size} bytes out of {info.compress_size}")
    return shape, dtype
