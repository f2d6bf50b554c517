"""The version of what is stored: of a run's and a study's JSON, and a checkpoint's own.

A file from before there were versions is of schema 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_jax.files.json_files import Shape, anything, fits, read_json
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


# What makes a file of schema `i`, given its name and content, one of schema `i + 1`; whoever
# changes what is stored adds a step.
UPGRADES: tuple[Callable[[str, dict[str, Any]], dict[str, Any]], ...] = (
    lambda name, content: content,  # 0 to 1: the two entries of `stamped` alone
    _baseline_to_options,
)
SCHEMA = len(UPGRADES)


def stamped(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the schema and the version of sft_jax that write it; undone by `accepted`."""
    return {"schema": SCHEMA, "sft_jax": __version__, **content}


def accepted(content: Any, path: Path) -> dict[str, Any]:
    """What a file of this or an older version says, as this version would have written it.

    Args:
        content: parsed JSON.
        path: of the file; its name says what it holds.

    Returns:
        The content without what `stamped` added.

    Raises:
        CheckpointError: it is of a newer version, which the message names, or no object.
    """
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: found a {type(content).__name__}, expected an object; bring the file back, "
            "or begin in a new workdir"
        )
    rest = {key: value for key, value in content.items() if key not in ("schema", "sft_jax")}
    schema = content.get("schema", 0)
    if type(schema) is not int or schema < 0:
        raise CheckpointError(
            f"{path}: found schema {schema!r}, expected a whole number up to {SCHEMA}; bring the "
            "file back, or begin in a new workdir"
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
    """What a JSON file of this or an older version says.

    Args:
        path: of the file.
        shape: that the content must have, as this version writes it.
        remedy: what to do where it has not.

    Raises:
        CheckpointError: it cannot be read, has another shape, or is of a newer version.
    """
    content = accepted(read_json(path, anything, remedy), path)
    fits(content, shape, str(path), remedy, CheckpointError)
    return content
