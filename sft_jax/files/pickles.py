"""Unpickler for NumPy data that cannot execute code.

A pickle may name any importable callable and have it called. This unpickler imports nothing: the
few names that NumPy arrays and plain containers need are mapped to the functions below, and every
other name is refused.
"""

import collections
import io
import math
import os
import pickle
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sft_jax.files.errors import convert_errors
from sft_jax.files.npz import MAX_HEADER_BYTES, check_code_points, parse_npy_header
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.types import DataError

# Replaces the class `numpy.ndarray`, which must not be reachable: called with a buffer and an
# object dtype it would turn bytes of the file into pointers.
_NDARRAY = "numpy.ndarray"

# Modules of NumPy's internal functions, in version 1 and in version 2.
_NUMPY_CORES = ("numpy.core", "numpy._core")


_MAX_EMPTY_SIZE = 1 << 24
_ENCODINGS = ("latin1", "latin-1", "utf-8", "utf8", "ascii")
# Objects of a file are often referenced once or twice; but lists of lists of lists of the same few
# objects could become an array of any size. Entries per byte of the file, and extra entries.
_MAX_REPEATS = 16
_MAX_EXTRA_ENTRIES = 1 << 20
_CONTAINERS = (dict, list, tuple, np.ndarray)


@runtime_checkable
class Payload(Protocol):
    """Bytes that stay in a file; `mapped_pickles` puts them in place of long strings."""

    def array(self, dtype: np.dtype, shape: tuple[int, ...], order: str) -> Any:
        """Returns the bytes as an array; raises `UnpicklingError` if their number differs."""

    def load(self) -> bytes | str:
        """Reads the bytes or the text into memory."""


def describe_argument(value: Any) -> str:
    """Describes an object for a message; printing a list that holds itself could take forever."""
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    if isinstance(value, tuple) and all(isinstance(x, int) and x.bit_length() <= 64 for x in value):
        return repr(value[:32])
    return f"a {type(value).__name__}"


class AllowedCall:
    """Function for a name in the pickle; the pickle can call it and do nothing else with it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Calls the function."""
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a function cannot have state {describe_argument(state)}")


class Placeholder:
    """Object that takes the place of `value` while the pickle is read, and has no methods."""

    value: Any


class _Dtype(Placeholder):
    """Placeholder of a dtype: NumPy's own would trust the state on whether it holds objects."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not isinstance(code, str):
            raise pickle.UnpicklingError(f"a dtype may not be made of {describe_argument(code)}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, byteorder, part, names, fields, itemsize, _, _ = state
        if part is not None:
            self.value = np.dtype((_plain(part[0]), part[1]))
        elif names is not None:
            entries = [fields[name] for name in names]
            self.value = np.dtype(
                {
                    "names": list(names),
                    "formats": [_plain(entry[0]) for entry in entries],
                    "offsets": [entry[1] for entry in entries],
                    "itemsize": itemsize,
                }
            )
        else:
            self.value = self.value.newbyteorder(byteorder)


def _plain(dtype: Any) -> np.dtype:
    """Returns a dtype without fields: nested fields would double with every level."""
    if not isinstance(dtype, _Dtype) or dtype.value.names is not None:
        raise pickle.UnpicklingError("a dtype may not have fields within fields")
    return dtype.value


class _Array(Placeholder):
    """Placeholder of an array, whose state comes after its creation."""

    __hash__ = None  # type: ignore[assignment]  # not hashable

    def __init__(self):
        self.value: Any = np.empty(0, np.int8)

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if dtype.value == np.dtype(object) and isinstance(raw, list):
            array = np.empty(len(raw), object)
            for i, entry in enumerate(raw):
                array[i] = entry
            self.value = array.reshape(checked_shape(shape, dtype.value))
        else:
            self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: _Dtype, shape: Any, order: Any) -> Any:
    """Replaces `numpy._core.numeric._frombuffer` (protocol 5), for bytes only.

    NumPy does not store arrays of objects this way, and a long chain of them, each an entry of the
    next, would overflow the stack when it is freed.
    """
    np_dtype = dtype.value
    shape = checked_shape(shape, np_dtype)
    if np_dtype.hasobject:
        raise pickle.UnpicklingError(
            f"an array of {np_dtype} may not be made of {type(raw).__name__}"
        )
    if isinstance(raw, Payload):
        return raw.array(np_dtype, shape, order)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if math.prod(shape) * np_dtype.itemsize != len(raw):
        raise pickle.UnpicklingError(
            f"{len(raw)} bytes for an array of {np_dtype} and shape {shape}"
        )
    # Arrays are writable; a bytearray belongs to nobody else and need not be copied.
    buffer = raw if isinstance(raw, bytearray) else bytearray(raw)
    array = np.ndarray(shape, np_dtype, buffer, order=order)
    check_code_points(array)
    return array


def checked_shape(shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    """Checks that a shape consists of non-negative integers.

    An empty array may not have a very long axis either, since rows are processed one by one.

    Raises:
        UnpicklingError: The shape is anything else.
    """
    shape = tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise pickle.UnpicklingError(f"an array may not be of shape {describe_argument(shape)}")
    empty = 0 in shape or not dtype.itemsize
    if empty and math.prod(max(size, 1) for size in shape) > _MAX_EMPTY_SIZE:
        raise pickle.UnpicklingError(
            f"an empty array of {dtype} may not be of shape {describe_argument(shape)}"
        )
    return shape


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
    """Replaces `numpy._core.multiarray._reconstruct`; the state is set afterwards."""
    if kind is not _NDARRAY or tuple(shape) != (0,):
        arguments = f"{describe_argument(kind)} and shape {describe_argument(shape)}"
        raise pickle.UnpicklingError(f"an array may not be made of {arguments}")
    return _Array()


def _scalar(dtype: Any, *data: Any) -> np.generic:
    """Replaces `numpy._core.multiarray.scalar`: one number from its bytes."""
    if not isinstance(dtype, _Dtype) or dtype.value.hasobject or len(data) != 1:
        raise pickle.UnpicklingError(f"a scalar may not be made of {describe_argument(dtype)}")
    raw = data[0].encode("latin1") if isinstance(data[0], str) else data[0]
    array = np.frombuffer(raw, dtype.value, 1)
    check_code_points(array)
    return array[0]


def encode(text: Any, encoding: Any) -> bytes:
    """Replaces `_codecs.encode`: bytes that were stored as text."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes may not be made of {describe_argument(text)}")
    return text.encode(checked_encoding(encoding))


def checked_encoding(encoding: Any) -> str:
    """Checks that an encoding is one that pickles use; others may import modules or take forever.

    Raises:
        UnpicklingError: The encoding is another.
    """
    if encoding not in _ENCODINGS:
        raise pickle.UnpicklingError(
            f"bytes may not be made of text by {describe_argument(encoding)}"
        )
    return encoding


def _bytes_constructor(kind: type) -> Callable[..., Any]:
    """Returns a constructor from bytes or text only; from a number it would allocate zeros."""

    def construct(*args: Any) -> Any:
        if args and not isinstance(args[0], bytes | bytearray | str):
            raise pickle.UnpicklingError(
                f"a {kind.__name__} may not be made of {describe_argument(args[0])}"
            )
        if len(args) > 1:
            return kind(encode(*args))
        return kind(*args)

    return construct


class _OrderedDict(collections.OrderedDict):
    """OrderedDict that takes no attributes from the pickle, such as another `items`."""

    def __setstate__(self, state: Any) -> None:
        pass


def _allowed_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): AllowedCall(encode),
        ("collections", "OrderedDict"): _OrderedDict,
    }
    for core in _NUMPY_CORES:
        names[core + ".multiarray", "_reconstruct"] = AllowedCall(_reconstruct)
        names[core + ".multiarray", "scalar"] = AllowedCall(_scalar)
        names[core + ".numeric", "_frombuffer"] = AllowedCall(_array)
    for builtins in ("builtins", "__builtin__"):
        names |= {(builtins, kind.__name__): kind for kind in (set, frozenset)}
        names |= {
            (builtins, k.__name__): AllowedCall(_bytes_constructor(k)) for k in (bytearray, bytes)
        }
    return names


_ALLOWED = _allowed_names()


class SafeUnpickler(pickle.Unpickler):
    """Unpickler that imports nothing: names in the table above are mapped, others are refused."""

    remedy = "load it where it was made and save it again as plain arrays"

    def __init__(self, file: io.BufferedIOBase, name: str):
        """Opens a pickle and nothing else; strings of Python 2 are decoded as Latin-1."""
        super().__init__(file, encoding="latin1")
        self._name = name
        self._length = file.seek(0, io.SEEK_END)
        file.seek(0)

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement of a name; raises `DataError` if there is none."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise DataError(
            f"{self._name}: the pickle asks for {module}.{name}, expected numpy arrays, numbers, "
            "text and plain containers only; nothing of it was run. If you trust the file, "
            f"{self.remedy}"
        )

    def read(self) -> Any:
        """Returns the unpickled object, with arrays in place of placeholders."""
        content = _resolve(self.load(), {})
        count = count_entries(content, {})
        if count > _MAX_REPEATS * self._length + _MAX_EXTRA_ENTRIES:
            raise pickle.UnpicklingError(f"{count} entries, most of them the same few again")
        return content


def _resolve(value: Any, seen: dict[int, Any]) -> Any:
    # Checked first: most objects are of these types, and checking for a protocol is slow.
    if isinstance(value, str | bytes | int | float):
        return value
    if isinstance(value, Placeholder):
        return _resolve(value.value, seen)
    if isinstance(value, Payload):
        return value.load()
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, tuple):
        resolved = tuple(_resolve(entry, seen) for entry in value)
        # Keeping the tuple alive prevents another object from getting its id.
        seen[id(value)] = (value, resolved)
        return resolved
    seen[id(value)] = (value, value)
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            value[key] = _resolve(entry, seen)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        # The additional axis makes the entry of a 0-d array assignable.
        entries = value[None]
        for index in np.ndindex(entries.shape):
            entries[index] = _resolve(entries[index], seen)
    return value


def count_entries(value: Any, sizes: dict[int, int]) -> int:
    """Counts an object and the entries of all containers in it, repeated ones repeatedly.

    A container that holds itself counts once. Counts are stored in `sizes`, by id.
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
        # Types are compared first: a long list of numbers has few of them.
        kinds = tuple(kind for kind in set(map(type, entries)) if issubclass(kind, _CONTAINERS))
        inner = [entry for entry in entries if isinstance(entry, kinds)] if kinds else []
        within = sum(count_entries(entry, sizes) for entry in inner)
        sizes[id(value)] += len(entries) - len(inner) + within
    return sizes[id(value)]


def load_pickle(file: io.BufferedIOBase, name: str) -> Any:
    """Unpickles NumPy data and plain containers from an open binary file.

    Raises:
        DataError: The file is no complete pickle, or the pickle names anything else.
    """
    with convert_errors(name, "a complete pickle"):
        stream = file.read()
        # All opcodes are checked first, since the unpickler trusts some of the sizes.
        for _ in opcodes(stream):
            pass
        return SafeUnpickler(io.BytesIO(stream), name).read()


def load_npy_object(path: str | os.PathLike) -> np.ndarray:
    """Reads an object array saved by `np.save`, like `np.load(..., allow_pickle=True)`.

    Returns:
        The object array; its entries are arrays, numbers, text and plain containers.

    Raises:
        DataError: The file is missing, truncated, no `.npy` of objects, or names more than NumPy
            data (see `load_pickle`).
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise DataError(f"{name}: no such file, expected an .npy of objects; check the path")
    with open(name, "rb") as file:
        with convert_errors(name, "an .npy header"):
            header = parse_npy_header(file.read(MAX_HEADER_BYTES))
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
