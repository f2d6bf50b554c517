"""Pickled numpy data without pickle's power to run code.

A pickle may name any importable callable and have it called. The reader here looks up nothing: the
few names that numpy arrays and plain containers need are mapped to the functions below, and every
other name is refused before it is imported.
"""

import codecs
import collections
import io
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from sft_jax.types import DataError

# Stands for `numpy.ndarray` in the stream. The class itself must not be reachable: called with a
# buffer and dtype object it would turn bytes of the file into pointers.
_NDARRAY = "numpy.ndarray"


def _empty_array(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    """What `numpy._core.multiarray._reconstruct` is called for; the state is set afterwards."""
    if kind is not _NDARRAY or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"an array may not be made of {kind!r} and shape {shape!r}")
    return np.ndarray((0,), dtype=np.int8)


def _scalar(dtype: Any, *data: Any) -> np.generic:
    """What `numpy._core.multiarray.scalar` is called for: one number out of its bytes."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(data) != 1:
        raise pickle.UnpicklingError(f"a scalar may not be made of dtype {dtype!r}")
    raw = data[0].encode("latin1") if isinstance(data[0], str) else data[0]
    return np.frombuffer(raw, dtype, 1)[0]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """What `numpy._core.numeric._frombuffer` is called for (pickle protocol 5)."""
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _admitted() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
        ("collections", "OrderedDict"): collections.OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):
        names[core + ".multiarray", "_reconstruct"] = _empty_array
        names[core + ".multiarray", "scalar"] = _scalar
        names[core + ".numeric", "_frombuffer"] = _from_buffer
    for builtins in ("builtins", "__builtin__"):
        names |= {(builtins, kind.__name__): kind for kind in (set, frozenset, bytearray)}
    return names


_ADMITTED = _admitted()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, name: str):
        super().__init__(file, encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise DataError(
            f"{self._name}: the pickle asks for {module}.{name}, expected numpy arrays, numbers, "
            "text and plain containers only; nothing of it was run. If you trust the file, load "
            "it where it was made and save it again as plain arrays"
        )


def load_pickle(file: io.BufferedIOBase, name: str) -> Any:
    """Unpickles numpy data and plain containers from an open binary file.

    Args:
        file: positioned at the start of the pickle.
        name: of the file, for messages.

    Raises:
        DataError: the pickle names anything else, is truncated, or is not a pickle.
    """
    return _explained(lambda: _Unpickler(file, name).load(), name, "a complete pickle")


def load_npy_object(path: str | os.PathLike) -> np.ndarray:
    """Reads an object array saved by `np.save`, as `np.load(..., allow_pickle=True)` would.

    Python 2 strings are read as latin-1.

    Returns:
        The object array; its entries are arrays, numbers, text and plain containers.

    Raises:
        DataError: the file is missing, not an `.npy` of objects, truncated, or asks for more than
            numpy data (see `load_pickle`).
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise DataError(f"{name}: no such file, expected an .npy of objects; check the path")
    with open(name, "rb") as file:
        shape, dtype = _explained(lambda: _header(file), name, "an .npy header")
        if not dtype.hasobject or dtype != np.dtype(object):
            raise DataError(
                f"{name}: found dtype {dtype}, expected object; read it with np.load instead"
            )
        array = load_pickle(file, name)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        found = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(
            f"{name}: found {found} behind a header of shape {shape}, expected them to agree; get "
            "the file again"
        )
    return array


def _header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    version = npy_format.read_magic(file)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the format, which objects are not saved in")
    shape, _, dtype = read[version](file)
    return shape, dtype


def _explained(read: Callable[[], Any], name: str, expected: str) -> Any:
    try:
        return read()
    except DataError:
        raise
    # A damaged stream can make the machinery fail in any way; all of them mean the same here.
    except Exception as error:
        raise DataError(
            f"{name}: found {type(error).__name__} ({error}), expected {expected}; the file is "
            "damaged, truncated or of another kind: get it again"
        ) from error
