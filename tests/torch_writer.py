"""Writes what `torch.save` writes, without torch."""

import collections
import io
import pickle
import sys
import types
import zipfile
from unittest import mock

import jax.numpy as jnp
import numpy as np

_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


def _named(module, name):
    """A function that pickles as `module.name`."""
    made = types.FunctionType((lambda *args: None).__code__, {})
    made.__module__, made.__name__, made.__qualname__ = module, name, name
    return made


STORAGES = {dtype: _named("torch", name) for dtype, name in _NAMES.items()}
REBUILD = _named("torch._utils", "_rebuild_tensor_v2")
PARAMETER = _named("torch._utils", "_rebuild_parameter")
SIZE = _named("torch", "Size")
DEVICE = _named("torch", "device")
WITH_STATE = _named("torch._utils", "_rebuild_parameter_with_state")
INT64 = _named("torch", "int64")


class Storage:
    """Stands for the numbers of a storage; `reference` is what the pickle says of them."""

    def __init__(self, dtype, key, length):
        self.reference = ("storage", STORAGES[dtype], key, "cpu", length)


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class _Pickler(pickle.Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.raw = []

    def persistent_id(self, obj):
        return getattr(obj, "reference", None)

    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        storage = Storage(obj.dtype.name, str(len(self.raw)), obj.size)
        self.raw.append(np.ascontiguousarray(obj).tobytes())
        stride = tuple(np.cumprod((1, *obj.shape[:0:-1]))[::-1].tolist()) if obj.ndim else ()
        hooks = collections.OrderedDict()
        return REBUILD, (storage, 0, obj.shape, stride, False, hooks)


def dumps(content):
    """The pickle of an object, arrays as tensors, and the bytes of their storages."""
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("_utils")}
    named = (REBUILD, PARAMETER, WITH_STATE, SIZE, DEVICE, INT64)
    for made in (*STORAGES.values(), *named):
        setattr(modules[made.__module__], made.__name__, made)
    file = io.BytesIO()
    pickler = _Pickler(file)
    with mock.patch.dict(sys.modules, modules):
        pickler.dump(content)
    return file.getvalue(), pickler.raw


def write(path, stream, raw, packing=zipfile.ZIP_STORED, order=b"little"):
    """An archive of a pickle and the bytes of its storages."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("weights/data.pkl", stream)
        archive.writestr("weights/byteorder", order)
        for key, part in enumerate(raw):
            archive.writestr(f"weights/data/{key}", part)
        archive.writestr("weights/version", "3\n")
    return path


def save(content, path):
    """As `torch.save(content, path)`, with arrays in place of tensors."""
    return write(path, *dumps(content))


def bfloat16(array):
    """An array as `Tensor.bfloat16()` has it."""
    return np.asarray(array).astype(jnp.bfloat16)
