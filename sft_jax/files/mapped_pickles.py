"""Pickles of several GB, read without their arrays.

The stream is walked once, opcode by opcode. Wherever it holds a long string of bytes, a short
reference to the place in the file is put instead, and the stream that remains, which is small, is
given to the restricted unpickler of `safe_pickle`. Arrays whose values lie in the file as they are
become `FileArray`. That holds for every pickle of Python 3 from protocol 3, and of Python 2 from
protocol 1. Python 3 writes bytes as text under protocols 1 and 2: such arrays are decoded bit by
bit into memory, once. Protocol 0 is text altogether and is read as a whole.
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

from sft_jax.files.errors import explained
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.files.pickles import (
    Call,
    SafeUnpickler,
    checked_encoding,
    checked_shape,
    encode,
    shown,
)
from sft_jax.files.rows import FileArray, absolute

# Shorter strings stay in the stream.
LARGE = 4096

# How a long string is to be understood. Python 2 wrote bytes as `BINSTRING`.
_ENCODINGS = {
    "BINBYTES": None,
    "BINBYTES8": None,
    "BYTEARRAY8": None,
    "BINSTRING": "latin1",
    "BINUNICODE": "utf-8",
    "BINUNICODE8": "utf-8",
}


@dataclasses.dataclass(frozen=True)
class _Payload:
    """A long string that was left in the file; `encoding` is None for bytes."""

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
        made = FileArray(self.path, self.offset, dtype, checked_shape(shape, dtype), order)
        if self.encoding == "utf-8" or made.num_bytes != self.size:
            raise pickle.UnpicklingError(
                f"{self.size} bytes for an array of {dtype} and shape {shown(made.shape)}"
            )
        return made


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Bytes that Python 3 wrote as text, `encoding` of which gives them back."""

    text: _Payload
    encoding: str

    def load(self) -> bytes:
        return bytes(self._decoded())

    def array(self, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
        raw = self._decoded()
        shape = checked_shape(shape, dtype)
        if math.prod(shape) * dtype.itemsize != len(raw):
            found = f"{len(raw)} bytes for an array of {dtype} and shape {shown(shape)}"
            raise pickle.UnpicklingError(found)
        return np.ndarray(shape, dtype, raw, order=order)

    def _decoded(self) -> bytearray:
        decoder = codecs.getincrementaldecoder(self.text.encoding or "")("surrogatepass")
        raw = bytearray()
        for chunk in self.text.chunks():
            raw += decoder.decode(chunk).encode(self.encoding)
        raw += decoder.decode(b"", final=True).encode(self.encoding)
        return raw


class _MappedUnpickler(SafeUnpickler):
    def __init__(self, stream: bytes, name: str, payloads: list[_Payload]):
        super().__init__(io.BytesIO(stream), name)
        self._payloads = payloads

    def persistent_load(self, pid: Any) -> _Payload:
        return self._payloads[pid]

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return _ENCODE if (module, name) == ("_codecs", "encode") else found


def _encode(text: Any, encoding: Any) -> bytes | _Encoded:
    if isinstance(text, _Payload):
        return _Encoded(text, checked_encoding(encoding))
    return encode(text, encoding)


_ENCODE = Call(_encode)


def map_pickle(path: str | os.PathLike) -> Any:
    """Unpickles numpy data and plain containers; large arrays stay in the file.

    Returns:
        The content. Arrays of at least `LARGE` bytes are `FileArray`, smaller ones numpy arrays.

    Raises:
        DataError: the pickle names anything else (nothing of it is run), is truncated, or is not a
            pickle.
    """
    name = os.fspath(path)

    def read() -> Any:
        stream, payloads = _without_payloads(absolute(path))
        return _MappedUnpickler(stream, name, payloads).content()

    return explained(read, name, "a complete pickle")


def _without_payloads(path: str) -> tuple[bytes, list[_Payload]]:
    """The stream with references in place of long strings, and where these are."""
    payloads: list[_Payload] = []
    stream = bytearray()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        kept = 0
        for name, start, body, stop in opcodes(data):
            if name in ("PERSID", "BINPERSID"):
                raise pickle.UnpicklingError("a reference to something outside the file")
            large = name in _ENCODINGS and stop - body >= LARGE
            # Frames announce sizes that no longer hold; they are optional.
            if large or name == "FRAME":
                stream += data[kept:start]
                kept = stop
            if large:
                stream += b"J" + struct.pack("<i", len(payloads)) + b"Q"
                payloads.append(_Payload(path, body, stop - body, _ENCODINGS[name]))
        stream += data[kept:stop]
    return bytes(stream), payloads
