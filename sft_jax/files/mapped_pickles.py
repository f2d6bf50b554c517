"""Reader of large pickles that leaves their arrays in the file.

The pickle is scanned once, opcode by opcode. Long strings are replaced by short references to their
position in the file, and the remaining small stream goes to the restricted unpickler of `pickles`.
Arrays whose values are stored as plain bytes become `FileArray`: those of Python 3 from protocol 3,
and of Python 2 from protocol 1. Python 3 stores bytes as text under protocols 1 and 2; such arrays
are decoded into memory. Protocol 0 is text and is read into memory.
"""

import codecs
import dataclasses
import io
import math
import mmap
import os
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from sft_jax.files.errors import convert_errors
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.files.pickles import (
    AllowedCall,
    SafeUnpickler,
    checked_encoding,
    checked_shape,
    describe_argument,
    encode,
)
from sft_jax.files.rows import FileArray

# Shorter strings stay in the stream.
MIN_PAYLOAD_BYTES = 4096

# Text encoding of each opcode for long strings, None for bytes. Python 2 wrote bytes as
# `BINSTRING`.
_ENCODINGS = {
    "BINBYTES": None,
    "BINBYTES8": None,
    "BYTEARRAY8": None,
    "BINSTRING": "latin1",
    "BINUNICODE": "utf-8",
    "BINUNICODE8": "utf-8",
}


@dataclasses.dataclass(frozen=True)
class _FilePayload:
    """Long string that stays in the file; `encoding` is None for bytes."""

    path: str
    offset: int
    size: int
    encoding: str | None

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for start in range(0, self.size, size):
                yield file.read(min(size, self.size - start))

    def load(self) -> bytes | str:
        raw = b"".join(self.chunks())
        return raw if self.encoding is None else raw.decode(self.encoding, "surrogatepass")

    def array(self, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> FileArray:
        shape = checked_shape(shape, dtype)
        if self.encoding == "utf-8" or math.prod(shape) * dtype.itemsize != self.size:
            raise _size_error(self.size, dtype, shape)
        return FileArray(self.path, self.offset, dtype, shape, order)


@dataclasses.dataclass(frozen=True)
class _EncodedPayload:
    """Bytes that Python 3 stored as text; encoding the text restores them."""

    text: _FilePayload
    encoding: str

    def load(self) -> bytes:
        return bytes(self._encode())

    def array(self, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
        raw = self._encode()
        shape = checked_shape(shape, dtype)
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise _size_error(len(raw), dtype, shape)
        return np.ndarray(shape, dtype, raw, order=order)

    def _encode(self) -> bytearray:
        decoder = codecs.getincrementaldecoder(self.text.encoding or "")("surrogatepass")
        raw = bytearray()
        for chunk in self.text.chunks():
            raw += decoder.decode(chunk).encode(self.encoding)
        raw += decoder.decode(b"", final=True).encode(self.encoding)
        return raw


def _size_error(num_bytes: int, dtype: np.dtype, shape: tuple[int, ...]) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f"{num_bytes} bytes for an array of {dtype} and shape {describe_argument(shape)}"
    )


class _MappedUnpickler(SafeUnpickler):
    def __init__(self, stream: bytes, name: str, payloads: list[_FilePayload]):
        super().__init__(io.BytesIO(stream), name)
        self._payloads = payloads

    def persistent_load(self, pid: Any) -> _FilePayload:
        return self._payloads[pid]

    def find_class(self, module: str, name: str) -> Any:
        allowed = super().find_class(module, name)
        return _ENCODE if (module, name) == ("_codecs", "encode") else allowed


def _encode(text: Any, encoding: Any) -> bytes | _EncodedPayload:
    if isinstance(text, _FilePayload):
        return _EncodedPayload(text, checked_encoding(encoding))
    return encode(text, encoding)


_ENCODE = AllowedCall(_encode)


def map_pickle(path: str | os.PathLike) -> Any:
    """Unpickles NumPy data and plain containers; large arrays stay in the file.

    Returns:
        The object. Arrays of at least `MIN_PAYLOAD_BYTES` bytes are `FileArray`, smaller ones NumPy
        arrays.

    Raises:
        DataError: The file is no complete pickle, or names anything else (nothing is executed).
    """
    name = os.fspath(path)
    with convert_errors(name, "a complete pickle"):
        stream, payloads = _without_payloads(os.path.abspath(path))
        return _MappedUnpickler(stream, name, payloads).read()


def _without_payloads(path: str) -> tuple[bytes, list[_FilePayload]]:
    """Returns the stream with references in place of long strings, and these strings."""
    payloads: list[_FilePayload] = []
    stream = bytearray()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        copied = 0
        for name, start, body, stop in opcodes(data):
            if name in ("PERSID", "BINPERSID"):
                raise pickle.UnpicklingError("a reference to something outside the file")
            is_payload = name in _ENCODINGS and stop - body >= MIN_PAYLOAD_BYTES
            # Frames are optional, and their sizes no longer hold.
            if is_payload or name == "FRAME":
                stream += data[copied:start]
                copied = stop
            if is_payload:
                stream += b"J" + struct.pack("<i", len(payloads)) + b"Q"
                payloads.append(_FilePayload(path, body, stop - body, _ENCODINGS[name]))
        stream += data[copied:stop]
    return bytes(stream), payloads
