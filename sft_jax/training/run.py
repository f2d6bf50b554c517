"""A run folder: what it is called, what is in it, and everything a resolved run is built from."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config
from sft_jax.files.json_files import Shape, anything, mapped
from sft_jax.models import registry
from sft_jax.models.blocks import gather_in_blocks
from sft_jax.runs.layouts import data_of_run
from sft_jax.runs.schema import read_stored, stamped
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.optimizer import Schedule
from sft_jax.training.step import ApplyFn, StepConfig
from sft_jax.types import CheckpointError, ConfigError

# Settings that say where and how fast, not what: they may change between resumes.
_MAY_CHANGE = (
    *("data.data_dir", "data.num_threads", "data.prefetch", "train.keep"),
    *("train.data_parallel", "train.fsdp_parallel"),
)
# A process that dies is noticed before; one that prepares large data may take long.
_PATIENCE_MS = 12 * 3600 * 1000


def apply_function(model: nn.Module) -> ApplyFn:
    """The model as a pure function `(params, inputs, mask, keys[, mixup]) -> output`."""

    def apply(params, inputs, mask, keys, *mixup):
        return model.apply({"params": params}, inputs, mask, keys, *mixup)

    return apply


def step_config(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mixup: MixupPlan | None,
) -> StepConfig:
    """The training step of a resolved configuration and what has been built from it."""
    return StepConfig(
        apply=apply_function(model),
        optimizer=optimizer,
        schedule=schedule,
        augmentation=config.augment,
        label_smoothing=config.train.label_smoothing,
        accumulate=config.train.accumulate,
        seed=config.train.seed,
        mixup=mixup,
        gathering=gather_in_blocks,
    )


def resolve(config: Config, modalities: tuple, num_classes: int) -> Config:
    """Fills in what the data decides.

    Args:
        config: as given.
        modalities: specs inferred from or checked against the data.
        num_classes: of the data.

    Raises:
        ConfigError: the configuration says another number of classes than the data.
    """
    if config.model.num_classes not in (0, num_classes):
        raise ConfigError(
            f"model.num_classes: given {config.model.num_classes}, expected {num_classes} (the "
            "data's); set it to 0 to take it from the data"
        )
    model = dataclasses.replace(config.model, num_classes=num_classes)
    config = dataclasses.replace(config, modalities=modalities, model=model)
    registry.build(config)  # an unknown model name fails here, before any work
    return config


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


def meet(place: str):
    """Waits until all processes are at `place`, a name of its own; nothing for one alone.

    Preparing data takes each its own time, and Gloo gives up connecting after half a minute: so
    they meet before their first collective operation, which then takes place at once.
    """
    ocp.multihost.get_barrier_sync_fn()(key=place, timeout_ms=_PATIENCE_MS)
    multihost_utils.sync_global_devices(place)


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


def count_parameters(params: Any) -> dict[str, int]:
    """Parameters of each top-level part of a model, and `total`."""
    parts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()
    }
    return {**parts, "total": sum(parts.values())}
