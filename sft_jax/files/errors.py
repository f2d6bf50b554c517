"""Errors about the layout of a user's files, all of one form."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_jax.files import memory
from sft_jax.types import DataError


def layout_error(
    where: str | os.PathLike, key: str, found: Any, expected: Any, remedy: str
) -> DataError:
    """An error that names file, key, what was found, what was expected, and what to do."""
    return DataError(f"{where}: {key}: found {found}, expected {expected}; {remedy}")


def existing_file(path: str, setting: str, what: str) -> Path:
    """`path` with `~` expanded; relative paths are relative to the working directory.

    Args:
        path: as given in the configuration.
        setting: its name there.
        what: the file that is expected, in words.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path).expanduser()
    if path and file.is_file():
        return file
    if not path:
        found = "no path"
    else:
        found = f"{'a directory' if file.is_dir() else 'nothing'} at {str(file.absolute())!r}"
    remedy = f"set {setting}, relative to the working directory or absolute (docs/data.md)"
    raise layout_error(path or setting, setting, found, what, remedy)


def check_fits(num_bytes: int, where: str | os.PathLike, key: str, remedy: str) -> None:
    """Refuses what would not fit in memory, before any of it is allocated.

    Args:
        num_bytes: what reading takes.
        where: the file.
        key: the part of it.
        remedy: what to do.

    Raises:
        DataError: it is more than there is.
    """
    limit = memory.memory_limit()
    if num_bytes > limit:
        found = f"{num_bytes:,} bytes to hold in memory"
        raise layout_error(where, key, found, f"at most the {limit:,} there are", remedy)


def explained(read: Callable[[], Any], name: str | os.PathLike, expected: str) -> Any:
    """What `read` returns; whatever a damaged file makes it raise becomes one `DataError`.

    Args:
        read: reads the file or a part of it.
        name: of the file.
        expected: what it should have held.

    Raises:
        DataError: `read` raised anything.
    """
    try:
        return read()
    except DataError:
        raise
    # A damaged file can make its reader fail in any way; all of them mean the same here.
    except Exception as error:
        raise DataError(
            f"{name}: found {type(error).__name__} ({error}), expected {expected}; the file is "
            "damaged, truncated or of another kind: get it again"
        ) from error
