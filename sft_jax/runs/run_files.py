"""`config.json` and `data.json`, which every run folder begins with, and `decision.json`.

- `config.json`: the resolved configuration, as `config.io.to_dict` writes it.
- `data.json`: `modalities`, a list of `{name, length, feature_dim}`; `fingerprint` and `normalizer`
  of the data; optionally `num_records` and `groups`, the number of samples and groups by split,
  `num_parameters`, and `command`, the training command line. What the task knows of its targets:
  classification has `class_names` and `counts`, the samples of each class by split; multi-label has
  `label_names` and `label_counts`, the weight of training samples with and without each label;
  regression has `value_names` and `value_statistics` of the training split, and for sentiment
  `class_names` and `class_values`.
- `decision.json`: what the task learned from the validation split with the parameters of `step`:
  `thresholds` of labels, or `widths` of prediction intervals (null if there are too few samples).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.config.data import OPTIONS, path_options
from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config, Duration
from sft_jax.config.task import TaskConfig
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.json_files import (
    Shape,
    anything,
    integer,
    list_of,
    map_of,
    nullable,
    number,
    record,
    text,
)
from sft_jax.runs.schema import read_stored, write_stored
from sft_jax.types import CheckpointError

# Settings that affect where and how fast a run trains, but not its results.
_MAY_CHANGE = (
    *("data.data_dir", "data.num_threads", "data.prefetch", "train.keep"),
    *("train.data_parallel", "train.fsdp_parallel"),
    # The fingerprint says whether files with other paths have the same contents.
    *(f"data.options.{name}" for options in OPTIONS.values() for name in path_options(options)),
)
_RESTORE = "restore the file, or train into a new workdir"
_NUMBERS = list_of(number())
# Entries of `data.json` that name the outputs of a task.
OUTPUT_NAMES = ("class_names", "label_names", "value_names")
_DATA = {
    "class_names": list_of(text(), least=1),
    "class_values": _NUMBERS,
    "label_names": list_of(text(), least=1),
    "label_counts": record({"positive": _NUMBERS, "negative": _NUMBERS}),
    "value_names": list_of(text(), least=1),
    "value_statistics": map_of(_NUMBERS),
    "modalities": list_of(record({"name": text(), "length": integer(), "feature_dim": integer()})),
    "counts": map_of(list_of(integer())),
    "num_records": map_of(integer()),
    "groups": map_of(integer()),
    "num_parameters": integer(),
    "command": text(100_000),
    "fingerprint": text(),
    "normalizer": record(
        {
            "kind": text(),
            "shift": map_of(_NUMBERS),
            "scale": map_of(list_of(number(least=1e-300))),
        }
    ),
}


def data_shape(*required: str) -> Shape:
    """Shape of `data.json` for a reader that requires these entries; the others are optional."""
    return record({name: _DATA[name] for name in required}, _DATA)


def read_config(workdir: Path) -> Config:
    """Reads the configuration of a run.

    Raises:
        CheckpointError: The folder holds no run, or one of a newer version.
        ConfigError: The configuration has settings that this version does not know.
    """
    config = from_dict(read_stored(run_file(workdir, "config.json"), map_of(anything), _RESTORE))
    if config.task.name == "auto":
        # Runs of versions that had no other task; training stores what the data chose.
        config = dataclasses.replace(config, task=TaskConfig(name="classification"))
    return config


def read_data(workdir: Path, *required: str) -> dict[str, Any]:
    """Reads what a run knows of its data.

    Args:
        workdir: Folder of the run.
        required: Entries that must be present.

    Raises:
        CheckpointError: The folder holds no run, or one that is damaged or of a newer version.
    """
    return read_stored(run_file(workdir, "data.json"), data_shape(*required), _RESTORE)


_DECISION = record(
    {"step": integer()}, {"thresholds": _NUMBERS, "widths": list_of(nullable(number(least=0.0)))}
)


def write_decision(workdir: Path, step: int, decision: dict[str, Any]):
    """Writes what the task learned from the validation split with the parameters of a step."""
    with convert_disk_errors(workdir, outcome=""):
        write_stored(workdir / "decision.json", {"step": step, **decision})


def read_decision(workdir: Path, step: int) -> dict[str, Any] | None:
    """Reads what `write_decision` wrote for the parameters of a step; None if there is nothing.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = Path(workdir) / "decision.json"
    if not path.is_file():
        return None
    decision = read_stored(path, _DECISION, "remove it, and run `python -m sft_jax.evaluate` again")
    return decision if decision.pop("step") == step else None


def run_file(workdir: Path, name: str) -> Path:
    """Path of a file that training writes; raises `CheckpointError` if there is none."""
    path = Path(workdir) / name
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: found no {name}, expected a run folder; give --workdir of a run "
            f"that was started with `python -m sft_jax.train --config=configs/<run>.py "
            f"--workdir={path.parent}`"
        )
    return path


def open_run(workdir: Path, config: Config, data: dict[str, Any]) -> Config:
    """Starts a run folder, or checks that the existing one belongs to the same run.

    With several processes, process 0 starts it and every process checks it. The duration of
    training may differ; see `check_duration`.

    Returns:
        The stored configuration.

    Raises:
        CheckpointError: The folder belongs to another configuration or other data, or the
            processes do not share it.
    """
    if jax.process_index() == 0 and not (workdir / "config.json").exists():
        if any((workdir / "checkpoints").glob("*/[0-9]*")):
            raise CheckpointError(
                f"{workdir}: found checkpoints without a config.json, expected the configuration "
                "they were trained with; restore config.json and data.json, or choose a new workdir"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_stored(workdir / "data.json", data)
        write_stored(workdir / "config.json", to_dict(config))
    if jax.process_count() > 1:
        # A network file system may cache that a file is missing: look only after it is written.
        multihost_utils.sync_global_devices("run folder")
        if not (workdir / "config.json").exists():
            raise CheckpointError(
                f"{workdir}: process {jax.process_index()} does not find what process 0 wrote "
                "there, expected one folder that all hosts share; give a --workdir on a shared disk"
            )
    stored_config = read_config(workdir)
    differing = differing_settings(stored_config, config)
    differing.pop("train.duration", None)
    changed = [f"{path} {stored!r} -> {given!r}" for path, (stored, given) in differing.items()]
    stored = read_data(workdir, "fingerprint")
    if stored["fingerprint"] != data["fingerprint"]:
        changed.append("the data itself (its fingerprint)")
    elif not _same_normalizer(stored.get("normalizer"), data.get("normalizer")):
        changed.append("the normalization of the data (remove the prepared data)")
    if changed:
        advice = "resume it with its own settings, or choose a new workdir; what differs:"
        raise CheckpointError(
            f"{workdir}: holds a run with other settings; " + "\n  ".join([advice, *changed])
        )
    return stored_config


def check_duration(
    workdir: Path,
    stored: Config,
    config: Config,
    steps_per_epoch: int,
    trained: int,
    extend: bool = False,
):
    """Checks that a run may be continued to the duration of `config`.

    Args:
        workdir: Folder of the run.
        stored: Stored configuration of the run.
        config: Configuration to continue with.
        steps_per_epoch: Optimizer steps per pass over the training split.
        trained: Optimizer steps of the newest checkpoint.
        extend: Whether a schedule that depends on the duration may be stretched.

    Raises:
        CheckpointError: It may not.
    """
    before = stored.train.duration.to_steps(steps_per_epoch)
    total = config.train.duration.to_steps(steps_per_epoch)
    if total == before or not trained:
        return
    given = f"{workdir}: given train.duration {to_dict(config.train.duration)!r} ({total} steps)"
    if total < trained:
        raise CheckpointError(
            f"{given} for a run that has taken {trained} steps, expected at least as many; give "
            f"{to_dict(stored.train.duration)!r} or more, or choose a new workdir"
        )
    if config.optimizer.schedule == "cosine" and not extend:
        raise CheckpointError(
            f"{given} for a run of {before} steps with optimizer.schedule 'cosine', expected the "
            f"same duration: the cosine ends with the training, so that it would be stretched and "
            f"the learning rate would jump at step {trained}; give --extend (or extend=True in "
            "Python) to do so all the same, or choose a new workdir"
        )


def write_config(workdir: Path, stored: Config, duration: Duration):
    """Replaces the duration in the `config.json` of a run."""
    train = dataclasses.replace(stored.train, duration=duration)
    write_stored(workdir / "config.json", to_dict(dataclasses.replace(stored, train=train)))


def differing_settings(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that affect the results and differ: both values by dotted path."""
    before, after = _flatten(to_dict(first)), _flatten(to_dict(second))
    pairs = {path: (before.get(path), after.get(path)) for path in sorted({**before, **after})}
    # Flattened settings have no order.
    orders = [[spec.name for spec in config.modalities] for config in (first, second)]
    pairs["order of modalities"] = (orders[0], orders[1])
    return {
        path: values
        for path, values in pairs.items()
        if values[0] != values[1] and path not in _MAY_CHANGE
    }


def _same_normalizer(before: Any, now: Any) -> bool:
    """Whether two normalizers agree up to rounding; a missing one agrees with any."""
    if before is None or now is None:
        return True
    before, now = _flatten(before), _flatten(now)
    return before.keys() == now.keys() and all(
        before[key] == now[key]
        if isinstance(before[key], str)
        else np.allclose(before[key], now[key], rtol=1e-5, atol=1e-9)
        for key in before
    )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted name, as JSON would give them back."""
    if not isinstance(tree, dict):
        return {prefix: json.loads(json.dumps(tree))}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
