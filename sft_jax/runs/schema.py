"""The version of what is stored: of a run's and a study's JSON, and a checkpoint's own.

A file from before there were versions is of schema 0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_jax.files.json_files import Shape, anything, fits, read_json
from sft_jax.types import CheckpointError
from sft_jax.version import __version__

# What makes a file of schema `i`, given its name and content, one of schema `i + 1`; whoever
# changes what is stored adds a step.
UPGRADES: tuple[Callable[[str, dict[str, Any]], dict[str, Any]], ...] = (
    lambda name, content: content,  # 0 to 1: the two entries of `stamped` alone
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
