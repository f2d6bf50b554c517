"""Reader of PyTorch state dicts from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sft_jax.files.npz import read_npz
from sft_jax.files.torch_files import read_torch
from sft_jax.types import DataError


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict from an `.npz` file or a PyTorch checkpoint (`.pth` or `.pt`).

    Names may have the prefix `module.` or, in an `.npz` file, `param/` (then entries without it are
    ignored). A checkpoint may have the state dict under `state_dict` or `model`; its weights become
    float32. No code from the file runs, and PyTorch is not needed (see `torch_files.read_torch`).

    Args:
        path: Path of the file.

    Raises:
        DataError: The file cannot be read, or has no weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: not found, expected a state dict as .npz, .pth or .pt")
    if path.suffix == ".npz":
        state = read_arrays(path)
        if any(name.startswith("param/") for name in state):
            state = {
                name.removeprefix("param/"): array
                for name, array in state.items()
                if name.startswith("param/")
            }
    elif path.suffix in (".pth", ".pt"):
        state = _read_torch(path)
    else:
        raise DataError(f"{path}: found ending {path.suffix!r}, expected .npz, .pth or .pt")
    return {name.removeprefix("module."): array for name, array in state.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file without unpickling anything.

    NumPy stores bfloat16 as two raw bytes, which become bfloat16 again.

    Raises:
        DataError: The file cannot be read.
    """
    return {
        name: array.view(jnp.bfloat16) if array.dtype.str == "|V2" else array
        for name, array in read_npz(path).items()
    }


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    content = read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(map(_is_weight, content.items())):
        raise DataError(
            f"{path}: found no mapping from names to tensors, expected one; save model.state_dict()"
        )
    return {name: array.astype(np.float32) for name, array in content.items()}


def _is_weight(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    # NumPy identifies bfloat16 only by its name.
    return (
        isinstance(name, str)
        and isinstance(value, np.ndarray)
        and (value.dtype.kind in "fiub" or value.dtype == jnp.bfloat16)
    )
