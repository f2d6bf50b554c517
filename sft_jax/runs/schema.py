"""Version of the stored JSON: files of runs and studies, and the configuration in a checkpoint.

Files written before versions existed have schema 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_jax.files.json_files import Shape, anything, check_value, read_json, write_json
from sft_jax.types import CheckpointError
from sft_jax.version import __version__

# The settings of `model.baseline` in schema 1, by the models that read them.
_BASELINE_SETTINGS = {
    "unimodal": ("modality", "window"),
    "late": ("duplicate_cls",),
    "concat": ("window",),
    "mbt": ("num_bottlenecks", "exchange", "fuse_at"),
}


def _baseline_to_options(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 to 2: `model.baseline`, the same for all models, became `model.options`."""
    if name == "study.json":
        base = content.get("base")
        if isinstance(base, dict):
            content = {**content, "base": _with_options(base)}
        if isinstance(content.get("settings"), list):
            content = {**content, "settings": list(map(_with_renamed, content["settings"]))}
    # A checkpoint stores the configuration under the name `config`.
    elif name in ("config.json", "config"):
        content = _with_options(content)
    return content


def _with_options(config: dict[str, Any]) -> dict[str, Any]:
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("baseline"), dict):
        return config
    model = dict(model)
    baseline, used = model.pop("baseline"), _BASELINE_SETTINGS.get(str(model.get("name")), ())
    model["options"] = {key: value for key, value in baseline.items() if key in used}
    return {**config, "model": model}


def _with_renamed(setting: Any) -> Any:
    if not isinstance(setting, dict) or not isinstance(setting.get("overrides"), dict):
        return setting
    overrides = {
        key.replace("model.baseline.", "model.options."): value
        for key, value in setting["overrides"].items()
    }
    return {**setting, "overrides": overrides}


# `UPGRADES[i]` maps a file's name and content from schema `i` to `i + 1`. Whoever changes what is
# stored adds an upgrade.
UPGRADES: tuple[Callable[[str, dict[str, Any]], dict[str, Any]], ...] = (
    lambda name, content: content,  # 0 to 1: only added the two entries of `stamped`
    _baseline_to_options,
)
SCHEMA = len(UPGRADES)
_RESTORE = "restore the file, or choose a new workdir"


def stamped(content: dict[str, Any]) -> dict[str, Any]:
    """Adds the schema and the version of sft_jax to `content`; `accepted` removes them."""
    return {"schema": SCHEMA, "sft_jax": __version__, **content}


def accepted(content: Any, path: Path) -> dict[str, Any]:
    """Upgrades the content of a file of this or an older version to the current schema.

    Args:
        content: Parsed JSON.
        path: Path of the file; upgrades depend on its name.

    Returns:
        The content without the entries that `stamped` adds.

    Raises:
        CheckpointError: The file is of a newer version, or is not a JSON object.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: found a {type(content).__name__}, expected an object; {_RESTORE}"
        )
    rest = {key: value for key, value in content.items() if key not in ("schema", "sft_jax")}
    schema = content.get("schema", 0)
    if type(schema) is not int or schema < 0:
        raise CheckpointError(
            f"{path}: found schema {schema!r}, expected a whole number up to {SCHEMA}; {_RESTORE}"
        )
    if schema > SCHEMA:
        writer = content.get("sft_jax", "a newer version")
        raise CheckpointError(
            f"{path}: found schema {schema}, written by sft_jax {writer}; this is sft_jax "
            f"{__version__}, which knows schemas up to {SCHEMA}; install sft_jax {writer} or newer"
        )
    for upgrade in UPGRADES[schema:]:
        rest = upgrade(path.name, rest)
    return rest


def read_stored(path: Path, shape: Shape, remedy: str) -> Any:
    """Reads a JSON file of this or an older version.

    Args:
        path: Path of the file.
        shape: Shape of the content after upgrades.
        remedy: Advice for the error message.

    Raises:
        CheckpointError: The file cannot be read, has another shape, or is of a newer version.
    """
    content = accepted(read_json(path, anything, remedy), path)
    check_value(content, shape, str(path), remedy, CheckpointError)
    return content


def write_stored(path: Path, content: dict[str, Any]):
    """Writes a JSON file of this version atomically."""
    write_json(path, stamped(content))
