"""Checkpoints of PyTorch, read without it and without trust.

`torch.save` writes a zip archive: `<name>/data.pkl` is the object, in which every storage is a
reference to a member `<name>/data/<key>` of bare numbers. The pickle goes through the restricted
unpickler of `data.safe_pickle`; PyTorch's own, of weights alone, takes lengths at their word.
"""

import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sft_jax.files.errors import explained, memory_limit
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.files.pickles import Call, SafeUnpickler, StandIn, checked_shape, shown
from sft_jax.types import DataError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_TYPES = tuple(np.dtype(dtype).name for dtype in _DTYPES.values())
# Of all tensors, which may repeat the numbers of a storage: as many times the file, and some room.
_MOST_SHARED = 16
_ROOM = 1 << 20
_MOST_AXES = 32


class _Fixed(StandIn):
    """What nothing in the stream may change."""

    __hash__ = None  # type: ignore[assignment]  # how Python spells "not hashable"

    def __init__(self, made: Any):
        self.made = made

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"a {type(self).__name__} may not be given {shown(state)}")


class _Kind(_Fixed):
    """A type of storages; `made` is its dtype."""


class _Storage(_Fixed):
    """The numbers of a storage; `made` is an array `[n]`."""


class _Tensor(_Fixed):
    """A view of a storage; `made` is the array."""


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote (PyTorch 1.6 or newer), with arrays in place of tensors.

    Arrays of one storage share their memory and cannot be written to.

    Raises:
        DataError: the file is of another format, damaged or larger than memory, or its pickle
            asks for more than tensors, numbers, text and plain containers (nothing of it is run).
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: found no zip archive, expected what torch.save writes since PyTorch 1.6; "
            "load it where it was made, with weights_only=True, and save it again"
        )
    return explained(lambda: _read(path), path, "a checkpoint that torch.save wrote")


def _read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        there = os.path.getsize(path)
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename}: packed, which torch.save does not do")
            if info.compress_size != info.file_size:
                sizes = f"{info.file_size} bytes, {info.compress_size} in the file"
                raise ValueError(f"{info.filename}: {sizes}")
        # They might lie upon each other.
        total = sum(info.file_size for info in archive.infolist())
        if total > there:
            raise ValueError(f"parts of {total} bytes in a file of {there}")
        room = min(memory_limit() - total, _MOST_SHARED * there + _ROOM)
        if room < 0:
            raise ValueError(f"{total:,} bytes to hold in memory, which is more than there are")
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} pickles in the archive, expected one")
        (root,) = roots
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("numbers of another byte order; save it again on a common machine")
        stream = archive.read(f"{root}data.pkl")
        for _ in opcodes(stream):  # as `load_pickle` does
            pass
        return _TorchUnpickler(stream, str(path), archive, root, room).content()


class _TorchUnpickler(SafeUnpickler):
    remedy = "load it where it was made and save model.state_dict() alone"

    def __init__(self, stream: bytes, name: str, archive: zipfile.ZipFile, root: str, room: int):
        super().__init__(io.BytesIO(stream), name)
        self._archive, self._root, self._room = archive, root, room
        self._storages: dict[str, _Storage] = {}
        self._names: dict[tuple[str, str], Any] = {
            **{("torch", name): _Kind(np.dtype(dtype)) for name, dtype in _DTYPES.items()},
            **{("torch", name): _Fixed(f"torch.{name}") for name in _TYPES},
            ("torch", "Size"): Call(_size),
            ("torch", "device"): Call(_device),
            ("torch._utils", "_rebuild_tensor_v2"): Call(self._tensor),
            ("torch._utils", "_rebuild_parameter"): Call(_parameter),
            ("torch._utils", "_rebuild_parameter_with_state"): Call(_parameter),
            ("collections", "Counter"): Call(_counter),
        }

    def find_class(self, module: str, name: str) -> Any:
        """The function or type that stands for a name of the stream."""
        known = self._names.get((module, name))
        return super().find_class(module, name) if known is None else known

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that `("storage", type, key, device, length)` stands for."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"a reference to {shown(pid)}, expected a storage")
        _, kind, key, _, length = pid
        if not isinstance(kind, _Kind) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"a storage of {shown(kind)} under {shown(key)}")
        if key not in self._storages:
            raw = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = _Storage(np.frombuffer(raw, kind.made))
        found = self._storages[key]
        if found.made.dtype != kind.made or found.made.size != length:
            raise pickle.UnpicklingError(
                f"{shown(length)} numbers of {kind.made} in place of {found.made.size} of "
                f"{found.made.dtype}"
            )
        return found

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> _Tensor:
        """What `torch._utils._rebuild_tensor_v2` is called for."""
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"a tensor may not be made of {shown(storage)}")
        if len(others) > 2 and others[2]:
            raise pickle.UnpicklingError("a negated or conjugated view; resolve it and save again")
        values = storage.made
        size, stride = _numbers(size), _numbers(stride)
        (offset,) = _numbers((offset,))
        if len(size) != len(stride):
            raise pickle.UnpicklingError(f"a tensor may not be of {shown(size)}, {shown(stride)}")
        count = math.prod(checked_shape(size, values.dtype))
        # In whole numbers of any size: numpy's own check would let 2^64 through as 0.
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and reach >= values.size:
            raise pickle.UnpicklingError(f"number {reach} of {values.size}")
        # Views take no memory, but whoever uses them will copy each.
        self._room -= count * max(values.itemsize, 4)
        if self._room < 0:
            raise pickle.UnpicklingError("tensors that would take too much memory one by one")
        if not count:
            return _Tensor(np.empty(size, values.dtype))
        itemsize = values.itemsize
        strides = tuple(
            itemsize * step if n > 1 else 0 for n, step in zip(size, stride, strict=True)
        )
        return _Tensor(np.ndarray(size, values.dtype, values, itemsize * offset, strides))


def _numbers(given: Any) -> tuple[int, ...]:
    """Sizes or steps along axes: a few whole numbers, none below zero, that a machine can count."""
    if not isinstance(given, tuple) or len(given) > _MOST_AXES:
        raise pickle.UnpicklingError(f"a tensor may not be of {shown(given)[:200]}")
    if not all(isinstance(n, int) and 0 <= n < 2**63 for n in given):
        raise pickle.UnpicklingError(f"a tensor may not be of {shown(given)}")
    return given


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    """What `torch._utils._rebuild_parameter` is called for."""
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(f"a parameter may not be made of {shown(tensor)}")
    return tensor


def _size(sizes: Any) -> tuple[int, ...]:
    """What `torch.Size` is called for."""
    return _numbers(sizes)


def _device(*where: Any) -> str:
    """What `torch.device` is called for."""
    return ":".join(str(part)[:80] for part in where if isinstance(part, str | int))


def _counter(counts: Any) -> dict:
    """What `collections.Counter` is called for."""
    if not isinstance(counts, dict):
        raise pickle.UnpicklingError(f"counts may not be made of {shown(counts)}")
    return counts
