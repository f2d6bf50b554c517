"""Reader of PyTorch checkpoints that needs no PyTorch and cannot execute code.

`torch.save` writes a zip archive: `<name>/data.pkl` is the object, in which every storage is a
reference to a member `<name>/data/<key>` of plain numbers. The pickle goes through the restricted
unpickler of `pickles`; PyTorch's own `weights_only` mode trusts the lengths in the file.
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

from sft_jax.files.errors import convert_errors, memory_limit
from sft_jax.files.pickle_opcodes import opcodes
from sft_jax.files.pickles import (
    AllowedCall,
    Placeholder,
    SafeUnpickler,
    checked_shape,
    describe_argument,
)
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
# Tensors may share a storage; this limits their total size, as a multiple of the file's.
_MAX_REPEATS = 16
_MARGIN_BYTES = 1 << 20
_MAX_AXES = 32


class _Constant(Placeholder):
    """Placeholder whose value the pickle cannot change."""

    __hash__ = None  # type: ignore[assignment]  # not hashable

    def __init__(self, value: Any):
        self.value = value

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(
            f"a {type(self).__name__} may not be given {describe_argument(state)}"
        )


class _StorageType(_Constant):
    """Placeholder of a storage type; the value is its dtype."""


class _Storage(_Constant):
    """Placeholder of a storage; the value is an array `[n]`."""


class _Tensor(_Constant):
    """Placeholder of a tensor; the value is an array, a view of a storage."""


def read_torch(path: Path) -> Any:
    """Reads a file of `torch.save` (PyTorch 1.6 or newer), with arrays in place of tensors.

    Arrays of one storage share their memory and are read-only.

    Raises:
        DataError: The file has another format, is damaged or larger than memory, or its pickle
            names more than tensors, numbers, text and plain containers (nothing is executed).
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: found no zip archive, expected what torch.save writes since PyTorch 1.6; "
            "load it where it was made, with weights_only=True, and save it again"
        )
    with convert_errors(path, "a checkpoint that torch.save wrote"):
        return _read(path)


def _read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        file_size = os.path.getsize(path)
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename}: compressed, which torch.save does not do")
            if info.compress_size != info.file_size:
                sizes = f"{info.file_size} bytes, {info.compress_size} in the file"
                raise ValueError(f"{info.filename}: {sizes}")
        # Members could overlap.
        total = sum(info.file_size for info in archive.infolist())
        if total > file_size:
            raise ValueError(f"parts of {total} bytes in a file of {file_size}")
        free_bytes = min(memory_limit() - total, _MAX_REPEATS * file_size + _MARGIN_BYTES)
        if free_bytes < 0:
            raise ValueError(f"{total:,} bytes to hold in memory, which is more than there are")
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} pickles in the archive, expected one")
        (root,) = roots
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("numbers of another byte order; save it again on a common machine")
        stream = archive.read(f"{root}data.pkl")
        for _ in opcodes(stream):  # checks all opcodes first, as `load_pickle` does
            pass
        return _TorchUnpickler(stream, str(path), archive, root, free_bytes).read()


class _TorchUnpickler(SafeUnpickler):
    remedy = "load it where it was made and save model.state_dict() alone"

    def __init__(
        self, stream: bytes, name: str, archive: zipfile.ZipFile, root: str, free_bytes: int
    ):
        super().__init__(io.BytesIO(stream), name)
        self._archive, self._root, self._free_bytes = archive, root, free_bytes
        self._storages: dict[str, _Storage] = {}
        self._names: dict[tuple[str, str], Any] = {
            **{("torch", name): _StorageType(np.dtype(dtype)) for name, dtype in _DTYPES.items()},
            **{("torch", name): _Constant(f"torch.{name}") for name in _TYPES},
            ("torch", "Size"): AllowedCall(_checked_integers),
            ("torch", "device"): AllowedCall(_device),
            ("torch._utils", "_rebuild_tensor_v2"): AllowedCall(self._tensor),
            ("torch._utils", "_rebuild_parameter"): AllowedCall(_parameter),
            ("torch._utils", "_rebuild_parameter_with_state"): AllowedCall(_parameter),
            ("collections", "Counter"): AllowedCall(_counter),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement of a name; raises `DataError` if there is none."""
        allowed = self._names.get((module, name))
        return super().find_class(module, name) if allowed is None else allowed

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage for a reference `("storage", type, key, device, length)`."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(
                f"a reference to {describe_argument(pid)}, expected a storage"
            )
        _, kind, key, _, length = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError(
                f"a storage of {describe_argument(kind)} under {describe_argument(key)}"
            )
        if key not in self._storages:
            raw = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = _Storage(np.frombuffer(raw, kind.value))
        storage = self._storages[key]
        dtype, size = storage.value.dtype, storage.value.size
        if dtype != kind.value or size != length:
            claimed = f"{describe_argument(length)} numbers of {kind.value}"
            raise pickle.UnpicklingError(f"{claimed} in place of {size} of {dtype}")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> _Tensor:
        """Replaces `torch._utils._rebuild_tensor_v2`."""
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(
                f"a tensor may not be made of {describe_argument(storage)}"
            )
        if len(others) > 2 and others[2]:
            raise pickle.UnpicklingError("a negated or conjugated view; resolve it and save again")
        values = storage.value
        size, stride = _checked_integers(size), _checked_integers(stride)
        (offset,) = _checked_integers((offset,))
        if len(size) != len(stride):
            raise pickle.UnpicklingError(
                f"a tensor may not be of {describe_argument(size)}, {describe_argument(stride)}"
            )
        count = math.prod(checked_shape(size, values.dtype))
        # Python integers do not overflow; NumPy's own check would let 2^64 through as 0.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and last >= values.size:
            raise pickle.UnpicklingError(f"number {last} of {values.size}")
        # Views take no memory, but their users copy each of them.
        self._free_bytes -= count * max(values.itemsize, 4)
        if self._free_bytes < 0:
            raise pickle.UnpicklingError("tensors that would take too much memory one by one")
        if not count:
            return _Tensor(np.empty(size, values.dtype))
        itemsize = values.itemsize
        strides = tuple(
            itemsize * step if n > 1 else 0 for n, step in zip(size, stride, strict=True)
        )
        return _Tensor(np.ndarray(size, values.dtype, values, itemsize * offset, strides))


def _checked_integers(values: Any) -> tuple[int, ...]:
    """Replaces `torch.Size`, and checks strides: a few non-negative integers of at most 63 bits."""
    if not isinstance(values, tuple) or len(values) > _MAX_AXES:
        raise pickle.UnpicklingError(f"a tensor may not be of {describe_argument(values)[:200]}")
    if not all(isinstance(n, int) and 0 <= n < 2**63 for n in values):
        raise pickle.UnpicklingError(f"a tensor may not be of {describe_argument(values)}")
    return values


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    """Replaces `torch._utils._rebuild_parameter`."""
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(f"a parameter may not be made of {describe_argument(tensor)}")
    return tensor


def _device(*parts: Any) -> str:
    """Replaces `torch.device`."""
    return ":".join(str(part)[:80] for part in parts if isinstance(part, str | int))


def _counter(counts: Any) -> dict:
    """Replaces `collections.Counter`."""
    if not isinstance(counts, dict):
        raise pickle.UnpicklingError(f"counts may not be made of {describe_argument(counts)}")
    return counts
