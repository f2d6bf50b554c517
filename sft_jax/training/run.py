"""Files of a run folder: written, read and compared with the run that is to go on there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config
from sft_jax.files.json_files import Shape, anything, mapped
from sft_jax.runs.layouts import data_of_run
from sft_jax.runs.schema import read_stored, stamped
from sft_jax.types import CheckpointError

# Settings that say where and how fast, not what: they may change between resumes.
_MAY_CHANGE = (
    *("data.data_dir", "data.num_threads", "data.prefetch", "train.keep"),
    *("train.data_parallel", "train.fsdp_parallel"),
)


def write_json(path: Path, content: Any):
    """Writes JSON so that the file is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]):
    """Writes arrays, compressed, so that the file is there whole or not at all."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]  # names are no flags of it
    os.replace(partial, path)


def read_config(workdir: Path) -> Config:
    """The configuration a run was started with.

    Raises:
        CheckpointError: the folder holds no run, or one of a newer version.
    """
    return from_dict(_read(Path(workdir) / "config.json", mapped(anything)))


def read_data(workdir: Path, *needed: str) -> dict[str, Any]:
    """What the run knows of its data: classes, normalisation, counts, fingerprint.

    Args:
        workdir: of the run.
        needed: entries that must be there beside the fingerprint.

    Raises:
        CheckpointError: the folder holds no run, or one that is damaged or of a newer version.
    """
    return _read(Path(workdir) / "data.json", data_of_run("fingerprint", *needed))


def _read(path: Path, shape: Shape) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not found, expected the folder of a run; give --workdir of a run that "
            "`python -m sft_jax.train` has begun"
        )
    return read_stored(path, shape, "restore the file, or train into a new workdir")


def open_run(workdir: Path, config: Config, data: dict[str, Any]):
    """Starts a run folder, or checks that the one there is the same run.

    The first of several processes starts it, and the others check that they are of the same run.

    Raises:
        CheckpointError: the folder belongs to another configuration or other data, or is not
            shared by all processes.
    """
    if jax.process_index() == 0 and not (workdir / "config.json").exists():
        if any((workdir / "checkpoints").glob("*/[0-9]*")):
            raise CheckpointError(
                f"{workdir}: holds checkpoints, but no config.json that says of what run they are; "
                "restore config.json and data.json, or choose a new workdir"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "data.json", stamped(data))
        write_json(workdir / "config.json", stamped(to_dict(config)))
    if jax.process_count() > 1:
        # Nobody looks before it is written: a network disk may remember that it was not there.
        multihost_utils.sync_global_devices("run folder")
        if not (workdir / "config.json").exists():
            raise CheckpointError(
                f"{workdir}: process {jax.process_index()} does not find what process 0 wrote "
                "there, expected one folder that all hosts share; give a --workdir on a shared disk"
            )
    before, now = _flatten(to_dict(read_config(workdir))), _flatten(to_dict(config))
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _MAY_CHANGE
    ]
    orders = [[spec.name for spec in c.modalities] for c in (read_config(workdir), config)]
    if orders[0] != orders[1]:
        changed.append(f"order of modalities {orders[0]} -> {orders[1]}")
    stored = read_data(workdir)
    if stored["fingerprint"] != data["fingerprint"]:
        changed.append("the data itself (its fingerprint)")
    elif not _close(*(kept.get("normalizer") for kept in (stored, data))):
        changed.append("what the data are normalized by (remove the prepared data)")
    if changed:
        advice = "resume it with those it began with, or choose a new workdir; what differs:"
        raise CheckpointError(
            f"{workdir}: holds a run with other settings; " + "\n  ".join([advice, *changed])
        )


def _close(before: Any, now: Any) -> bool:
    """Whether normalizers agree, where both are there: prepared elsewhere, sums may be rounded."""
    if before is None or now is None:
        return True
    before, now = (_flatten(json.loads(json.dumps(given))) for given in (before, now))
    return before.keys() == now.keys() and all(
        before[key] == now[key]
        if isinstance(before[key], str)
        else np.allclose(before[key], now[key], rtol=1e-5, atol=1e-9)
        for key in before
    )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: json.loads(json.dumps(tree))}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
