"""SHA-256 of the files of a folder, kept inside it: damage is found before anything is read.

The sums of a checkpoint or of prepared data are written while it still has its temporary name, so
a folder without them is one of a version that did not write any.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "checksums.json"
# Orbax completes these two after the sums; it reads a checkpoint without them, too.
_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_DAMAGE = (errno.ENOENT, errno.EIO, errno.ENOTDIR, errno.EISDIR)


def write_checksums(folder: Path, pattern: str = "*", most_bytes: int | None = None):
    """Writes the sizes and sums of the files below `folder` into it, whole or not at all.

    Args:
        folder: where the files are.
        pattern: of the names of those that are meant.
        most_bytes: of files that take more in all, only the sizes are written; None: no limit.
    """
    meant = {name: path for name, path in sorted(_files(folder).items()) if path.match(pattern)}
    files: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size} for name, path in meant.items()
    }
    if most_bytes is None or sum(entry["bytes"] for entry in files.values()) <= most_bytes:
        for name, path in meant.items():
            files[name]["sha256"] = file_sha256(path)
    _write(folder, files)


def add_checksum(folder: Path, name: str):
    """Adds a file that came later to the sums of its folder."""
    files = json.loads((folder / NAME).read_text())["files"]
    path = folder / name
    files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    _write(folder, files)


def find_damage(folder: Path, most_bytes: int | None = None) -> str | None:
    """What is wrong with the files of a folder, the first of them by name; None if nothing.

    Where only the size of a file was written, only its size is checked.

    Args:
        folder: where the files are. Nothing outside of it is read, whatever its sums name.
        most_bytes: files that take more in all are checked for their sizes alone; None: no limit.

    Raises:
        OSError: a file could not be read for a reason that does not lie in it, such as too many
            open files.
    """
    sums = folder / NAME
    if not has_sums(folder):
        return None
    found = _files(folder)
    try:
        expected: dict[str, Any] = json.loads(sums.read_text())["files"]
        total = sum(entry["bytes"] for entry in expected.values())
        sums_count = most_bytes is None or total <= most_bytes
        for name, entry in sorted(expected.items()):
            if name not in found:
                return f"{folder / name}: not found, expected {entry['bytes']} bytes"
            size = found[name].stat().st_size
            if size != entry["bytes"]:
                return f"{folder / name}: found {size} bytes, expected {entry['bytes']}"
            if sums_count and "sha256" in entry and file_sha256(found[name]) != entry["sha256"]:
                return f"{folder / name}: found other bytes than were written (SHA-256 differs)"
    # What is no table of sums: no JSON (nested too deep, with numbers too long), other types.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"{sums}: holds no sums ({type(error).__name__})"
    # A sector that cannot be read, or a file that went away meanwhile.
    except OSError as error:
        if not is_damage(error):
            raise
        return f"{error.filename or folder}: could not be read ({error.strerror})"
    return None


def has_sums(folder: Path) -> bool:
    """Whether sums were written with a folder."""
    return (folder / NAME).is_file()


def is_damage(error: OSError) -> bool:
    """Whether a file or its sectors are at fault, not the process or the network, for now."""
    return error.errno in _DAMAGE


def move_aside(folder: Path):
    """Renames `5` to `5.damaged`, or to `5.damaged-2` where there is one already."""
    aside, count = folder.with_name(f"{folder.name}.damaged"), 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"{folder.name}.damaged-{count}")
    folder.rename(aside)


def _write(folder: Path, files: dict[str, dict[str, Any]]):
    partial = folder / f"{NAME}.partial"
    with partial.open("w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)


def _files(folder: Path) -> dict[str, Path]:
    """The regular files below a folder by relative name, but for those that come later."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not (path.parent == folder and path.name in (*_LATER, NAME, f"{NAME}.partial"))
    }


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
