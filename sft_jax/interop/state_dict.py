"""State dicts of PyTorch models, from files."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sft_jax.array_files import read_npz
from sft_jax.types import DataError


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """A state dict from an `.npz` file, or from a `.pth` or `.pt` checkpoint (needs torch).

    Names may carry the prefix `param/` (then other entries are not weights) or `module.`, and a
    checkpoint may keep them under `state_dict` or `model`. Torch loads weights only, so a
    checkpoint cannot run code.

    Raises:
        DataError: the file cannot be read, or torch is needed and not installed.
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
    try:
        import torch
    except ImportError as error:
        raise DataError(
            f"{path}: a torch checkpoint, and torch is not installed; install the extra 'torch', "
            "or save the state dict with numpy.savez where it is"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; all mean that nothing was loaded
        raise DataError(
            f"{path}: not loadable as weights ({error}), expected a state dict; save "
            "model.state_dict() alone"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise DataError(f"{path}: found no mapping of names to tensors; save model.state_dict()")
    return {name: tensor.float().numpy() for name, tensor in content.items()}
