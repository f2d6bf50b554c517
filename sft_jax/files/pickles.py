"""Pickled numpy data without pickle's power to run code.

A pickle may name any importable callable and have it called. The reader here looks up nothing: the
few names that numpy arrays and plain containers need are mapped to the functions below, and every
other name is refused before it is imported.
"""

import collections
import io
import math
import os
import pickle
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sft_jax.files.errors import explained
from sft_jax.files.npz import LONGEST_HEADER, check_letters, parse_npy_header
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.types import DataError

# Stands for `numpy.ndarray` in the stream. The class itself must not be reachable: called with a
# buffer and dtype object it would turn bytes of the file into pointers.
NDARRAY = "numpy.ndarray"

# Where numpy's own functions live, up to version 1 and since version 2.
NUMPY_CORES = ("numpy.core", "numpy._core")


@runtime_checkable
class Payload(Protocol):
    """Bytes that were left in a file; `mapped_pickle` puts them in place of long strings."""

    def array(self, dtype: np.dtype, shape: tuple[int, ...], order: str) -> Any:
        """The bytes as an array; raises `UnpicklingError` if they are not as many."""

    def load(self) -> bytes | str:
        """The bytes, or the text, in memory."""


_MOST_EMPTY = 1 << 24
_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")
# How often a part may be there again: an entry or two of a file are, but lists of lists of lists
# of the same few would become an array of any size.
_MOST_SHARED = 16
_CONTAINERS = (dict, list, tuple, np.ndarray)
_ROOM = 1 << 20


def shown(value: Any) -> str:
    """A value of the stream for a message: a list may hold itself 2^n times, so none is printed."""
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(x, int) and x.bit_length() <= 64 for x in value):
        return repr(value[:32])
    return f"a {type(value).__name__}"


class Call:
    """A function that stands for a name of the stream, which can do nothing but call it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a function may not be given the state {shown(state)}")


class StandIn:
    """Stands for a value while the stream is read, and can do nothing; `made` is the value."""

    made: Any


class _Dtype(StandIn):
    """Stands for a dtype. numpy's own would take the state's word on whether it holds objects."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not isinstance(code, str):
            raise pickle.UnpicklingError(f"a dtype may not be made of {shown(code)}")
        self.made = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, byteorder, part, names, fields, itemsize, _, _ = state
        if part is not None:
            self.made = np.dtype((_plain(part[0]), part[1]))
        elif names is not None:
            entries = [fields[name] for name in names]
            self.made = np.dtype(
                {
                    "names": list(names),
                    "formats": [_plain(entry[0]) for entry in entries],
                    "offsets": [entry[1] for entry in entries],
                    "itemsize": itemsize,
                }
            )
        else:
            self.made = self.made.newbyteorder(byteorder)


def _plain(dtype: Any) -> np.dtype:
    """A dtype without fields: those of fields of fields would double with every level."""
    if not isinstance(dtype, _Dtype) or dtype.made.names is not None:
        raise pickle.UnpicklingError("a dtype may not have fields within fields")
    return dtype.made


class _Array(StandIn):
    """Stands for an array until its state is known; `made` is what it became."""

    __hash__ = None  # type: ignore[assignment]  # how Python spells "not hashable"

    def __init__(self):
        self.made: Any = np.empty(0, np.int8)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if dtype.made == np.dtype(object) and isinstance(raw, list):
            made = np.empty(len(raw), object)
            for i, entry in enumerate(raw):
                made[i] = entry
            self.made = made.reshape(checked_shape(shape, dtype.made))
        else:
            self.made = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: _Dtype, shape: Any, order: Any) -> Any:
    """What `numpy._core.numeric._frombuffer` is called for (protocol 5): of bytes alone.

    Nor does numpy write arrays of objects so. A long chain of them, each the entry of the next,
    would end Python when it is freed.
    """
    kind = dtype.made
    shape = checked_shape(shape, kind)
    if kind.hasobject:
        raise pickle.UnpicklingError(f"an array of {kind} may not be made of {type(raw).__name__}")
    if isinstance(raw, Payload):
        return raw.array(kind, shape, order)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if math.prod(shape) * kind.itemsize != len(raw):
        raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of {kind} and shape {shape}")
    # Arrays are writable; a bytearray is nobody else's and need not be copied for it.
    buffer = raw if isinstance(raw, bytearray) else bytearray(raw)
    array = np.ndarray(shape, kind, buffer, order=order)
    check_letters(array)
    return array


def checked_shape(shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    """A shape of whole numbers, none of them below zero.

    Where there are no values, it may still not promise very many of them, since something will be
    made for each.

    Raises:
        UnpicklingError: it is anything else.
    """
    shape = tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise pickle.UnpicklingError(f"an array may not be of shape {shown(shape)}")
    empty = 0 in shape or not dtype.itemsize
    if empty and math.prod(max(size, 1) for size in shape) > _MOST_EMPTY:
        raise pickle.UnpicklingError(
            f"an empty array of {dtype} may not be of shape {shown(shape)}"
        )
    return shape


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    """What `numpy._core.multiarray._reconstruct` is called for; the state is set afterwards."""
    if kind is not NDARRAY or tuple(shape) != (0,):
        given = f"{shown(kind)} and shape {shown(shape)}"
        raise pickle.UnpicklingError(f"an array may not be made of {given}")
    return _Array()


def _scalar(dtype: Any, *data: Any) -> np.generic:
    """What `numpy._core.multiarray.scalar` is called for: one number out of its bytes."""
    if not isinstance(dtype, _Dtype) or dtype.made.hasobject or len(data) != 1:
        raise pickle.UnpicklingError(f"a scalar may not be made of {shown(dtype)}")
    raw = data[0].encode("latin1") if isinstance(data[0], str) else data[0]
    array = np.frombuffer(raw, dtype.made, 1)
    check_letters(array)
    return array[0]


def encode(text: Any, encoding: Any) -> bytes:
    """What `_codecs.encode` is called for: bytes that were written as text."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes may not be made of {shown(text)}")
    return text.encode(checked_encoding(encoding))


def checked_encoding(encoding: Any) -> str:
    """One of those that bytes are written in; others are modules, and some of them take forever.

    Raises:
        UnpicklingError: it is none of them.
    """
    if encoding not in _ENCODINGS:
        raise pickle.UnpicklingError(f"bytes may not be made of text by {shown(encoding)}")
    return encoding


def _bytes_of(kind: type) -> Callable[..., Any]:
    """Makes bytes of bytes or text; of a number, they would be as many zeros."""

    def make(*args: Any) -> Any:
        if args and not isinstance(args[0], bytes | bytearray | str):
            raise pickle.UnpicklingError(f"a {kind.__name__} may not be made of {shown(args[0])}")
        if len(args) > 1:
            return kind(encode(*args))
        return kind(*args)

    return make


class _Ordered(collections.OrderedDict):
    """Has no attributes from the stream, such as an `items` of its own."""

    def __setstate__(self, state: Any) -> None:
        pass


def _admitted() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): NDARRAY,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): Call(encode),
        ("collections", "OrderedDict"): _Ordered,
    }
    for core in NUMPY_CORES:
        names[core + ".multiarray", "_reconstruct"] = Call(_reconstruct)
        names[core + ".multiarray", "scalar"] = Call(_scalar)
        names[core + ".numeric", "_frombuffer"] = Call(_array)
    for builtins in ("builtins", "__builtin__"):
        names |= {(builtins, kind.__name__): kind for kind in (set, frozenset)}
        names |= {(builtins, k.__name__): Call(_bytes_of(k)) for k in (bytearray, bytes)}
    return names


_ADMITTED = _admitted()


class SafeUnpickler(pickle.Unpickler):
    """Looks up nothing: names are mapped by the table above or refused with a `DataError`."""

    remedy = "load it where it was made and save it again as plain arrays"

    def __init__(self, file: io.BufferedIOBase, name: str):
        """Reads all of `file`, which messages call `name`; Python 2 strings are latin-1."""
        super().__init__(file, encoding="latin1")
        self._name = name
        # An entry takes a byte at least.
        self._length = file.seek(0, io.SEEK_END)
        file.seek(0)

    def find_class(self, module: str, name: str) -> Any:
        """The function that stands for a name of the stream."""
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise DataError(
            f"{self._name}: the pickle asks for {module}.{name}, expected numpy arrays, numbers, "
            "text and plain containers only; nothing of it was run. If you trust the file, "
            f"{self.remedy}"
        )

    def content(self) -> Any:
        """What the stream holds, with arrays in place of what stood for them."""
        content = _resolved(self.load(), {})
        expanded = count_entries(content, {})
        if expanded > _MOST_SHARED * self._length + _ROOM:
            raise pickle.UnpicklingError(f"{expanded} entries, most of them the same few again")
        return content


def _resolved(value: Any, seen: dict[int, Any]) -> Any:
    # Most of a long list; asked first, since asking for a protocol takes long.
    if isinstance(value, str | bytes | int | float):
        return value
    if isinstance(value, StandIn):
        return _resolved(value.made, seen)
    if isinstance(value, Payload):
        return value.load()
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        made = tuple(_resolved(entry, seen) for entry in value)
        # The tuple is kept, so that nothing else gets its id.
        seen[id(value)] = (value, made)
        return made
    seen[id(value)] = (value, value)
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            value[key] = _resolved(entry, seen)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        # With one more axis, the entry of an array without any can be set as well.
        entries = value[None]
        for index in np.ndindex(entries.shape):
            entries[index] = _resolved(entries[index], seen)
    return value


def count_entries(value: Any, sizes: dict[int, int]) -> int:
    """`value` and the entries of all containers in it, counted as often as they are there.

    Args:
        value: of any type.
        sizes: filled with the count of each container by its id; one that holds itself is counted
            once.
    """
    if isinstance(value, dict):
        entries: Any = value.values()
    elif isinstance(value, list | tuple):
        entries = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        entries = value.ravel().tolist()
    else:
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = 1
        # By types, of which a long list of numbers has few.
        kinds = tuple(kind for kind in set(map(type, entries)) if issubclass(kind, _CONTAINERS))
        inner = [entry for entry in entries if isinstance(entry, kinds)] if kinds else []
        within = sum(count_entries(entry, sizes) for entry in inner)
        sizes[id(value)] += len(entries) - len(inner) + within
    return sizes[id(value)]


def load_pickle(file: io.BufferedIOBase, name: str) -> Any:
    """Unpickles numpy data and plain containers from an open binary file.

    Args:
        file: positioned at the start of the pickle.
        name: of the file, for messages.

    Raises:
        DataError: the pickle names anything else, is truncated, or is not a pickle.
    """

    def read() -> Any:
        stream = file.read()
        # Looked at as a whole first: some sizes are taken at their word when they are met.
        for _ in opcodes(stream):
            pass
        return SafeUnpickler(io.BytesIO(stream), name).content()

    return explained(read, name, "a complete pickle")


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
        header = explained(
            lambda: parse_npy_header(file.read(LONGEST_HEADER)), name, "an .npy header"
        )
        shape, dtype = header.shape, header.dtype
        if not dtype.hasobject or dtype != np.dtype(object):
            raise DataError(
                f"{name}: found dtype {dtype}, expected object; read it with np.load instead"
            )
        file.seek(header.size)
        array = load_pickle(file, name)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        found = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(
            f"{name}: found {found} behind a header of shape {shape}, expected them to agree; get "
            "the file again"
        )
    return array
