"""`config.json` and `data.json`, which every run folder begins with.

- `config.json`: the resolved configuration, as `config.io.to_dict` writes it.
- `data.json`: `class_names`; `modalities`, a list of `{name, length, feature_dim}`; `counts`, the
  samples of each class by split; `fingerprint` and `normalizer` of the data; optionally `groups`,
  the number of groups by split, `num_parameters`, and `command`, the training command line.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.config.data import OPTIONS, path_options
from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config
from sft_jax.files.json_files import Shape, anything, integer, list_of, map_of, number, record, text
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
_DATA = {
    "class_names": list_of(text(), least=1),
    "modalities": list_of(record({"name": text(), "length": integer(), "feature_dim": integer()})),
    "counts": map_of(list_of(integer())),
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
    return from_dict(read_stored(run_file(workdir, "config.json"), map_of(anything), _RESTORE))


def read_data(workdir: Path, *required: str) -> dict[str, Any]:
    """Reads what a run knows of its data.

    Args:
        workdir: Folder of the run.
        required: Entries that must be present.

    Raises:
        CheckpointError: The folder holds no run, or one that is damaged or of a newer version.
    """
    return read_stored(run_file(workdir, "data.json"), data_shape(*required), _RESTORE)


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


def open_run(workdir: Path, config: Config, data: dict[str, Any]):
    """Starts a run folder, or checks that the existing one belongs to the same run.

    With several processes, process 0 starts it and every process checks it.

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
    differing = differing_settings(read_config(workdir), config)
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
