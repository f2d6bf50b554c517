"""State dicts of PyTorch models, from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sft_jax.files.npz import read_npz
from sft_jax.files.torch_files import read_torch
from sft_jax.types import DataError


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """A state dict from an `.npz` file, or from a `.pth` or `.pt` checkpoint of PyTorch.

    Names may carry the prefix `param/` (then other entries are not weights) or `module.`, and a
    checkpoint may keep them under `state_dict` or `model`; its weights become float32. Nothing of
    a file is run, and PyTorch is not needed (see `torch_archive.read_torch`).

    Raises:
        DataError: the file cannot be read, or holds no weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: not found, expected a state dict as .npz, .pth or .pt")
    if path.suffix == ".npz":
        state = read_arrays(path)
        if any(name.startswith("param/") for name in state):
            weights = ((name, name.removeprefix("param/")) for name in state)
            state = {short: state[name] for name, short in weights if short != name}
    elif path.suffix in (".pth", ".pt"):
        state = _read_torch(path)
    else:
        raise DataError(f"{path}: found ending {path.suffix!r}, expected .npz, .pth or .pt")
    return {name.removeprefix("module."): value for name, value in state.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file, none of which may be pickled.

    NumPy stores bfloat16 as bare pairs of bytes; they are taken for what they were.

    Raises:
        DataError: the file cannot be read.
    """
    return {
        name: x.view(jnp.bfloat16) if x.dtype.str == "|V2" else x
        for name, x in read_npz(path).items()
    }


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    content = read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(map(_is_weight, content.items())):
        raise DataError(f"{path}: found no mapping of names to tensors; save model.state_dict()")
    return {name: array.astype(np.float32) for name, array in content.items()}


def _is_weight(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    # numpy knows bfloat16 by its name alone.
    return (
        isinstance(name, str)
        and isinstance(value, np.ndarray)
        and (value.dtype.kind in "fiub" or value.dtype == jnp.bfloat16)
    )
