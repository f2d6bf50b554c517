"""SHA-256 checksums of the files of a folder, stored in it, to detect damage before reading.

The checksums of a checkpoint or of prepared data are written while the folder still has its
temporary name, so a folder without them comes from a version that did not write any.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "checksums.json"
# Orbax writes these two after the checksums; it reads a checkpoint without them, too.
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_DAMAGE_ERRNOS = (errno.ENOENT, errno.EIO, errno.ENOTDIR, errno.EISDIR)


def write_checksums(folder: Path, pattern: str = "*", max_hashed_bytes: int | None = None):
    """Writes sizes and checksums of the files below a folder into it, atomically.

    Covers files that match `pattern`. If they have more than `max_hashed_bytes` together, only
    their sizes are written.
    """
    paths = {
        name: path for name, path in sorted(_list_files(folder).items()) if path.match(pattern)
    }
    files: dict[str, dict[str, Any]] = {
        name: {"bytes": path.stat().st_size} for name, path in paths.items()
    }
    total = sum(entry["bytes"] for entry in files.values())
    if max_hashed_bytes is None or total <= max_hashed_bytes:
        for name, path in paths.items():
            files[name]["sha256"] = file_sha256(path)
    _write(folder, files)


def add_checksum(folder: Path, name: str):
    """Adds a file that was written later to the checksums of its folder."""
    files = json.loads((folder / NAME).read_text())["files"]
    path = folder / name
    files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    _write(folder, files)


def find_damage(folder: Path, max_hashed_bytes: int | None = None) -> str | None:
    """Describes the first damaged file of a folder, by name; None if there is none.

    Files without a stored checksum, and files of more than `max_hashed_bytes` together, are checked
    for their size alone. Nothing outside the folder is read, whatever its checksums name.

    Raises:
        OSError: A file could not be read for a reason other than damage, such as too many open
            files.
    """
    checksums = folder / NAME
    if not has_checksums(folder):
        return None
    paths = _list_files(folder)
    try:
        expected: dict[str, Any] = json.loads(checksums.read_text())["files"]
        total = sum(entry["bytes"] for entry in expected.values())
        check_hashes = max_hashed_bytes is None or total <= max_hashed_bytes
        for name, entry in sorted(expected.items()):
            if name not in paths:
                return f"{folder / name}: not found, expected {entry['bytes']} bytes"
            size = paths[name].stat().st_size
            if size != entry["bytes"]:
                return f"{folder / name}: found {size} bytes, expected {entry['bytes']}"
            if check_hashes and "sha256" in entry and file_sha256(paths[name]) != entry["sha256"]:
                return f"{folder / name}: found other bytes than were written (SHA-256 differs)"
    # The checksums themselves are damaged: no JSON, nested too deeply, or of other types.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"{checksums}: holds no checksums ({type(error).__name__})"
    # A sector cannot be read, or a file was removed meanwhile.
    except OSError as error:
        if not is_damage(error):
            raise
        return f"{error.filename or folder}: could not be read ({error.strerror})"
    return None


def has_checksums(folder: Path) -> bool:
    """Returns whether checksums were written for a folder."""
    return (folder / NAME).is_file()


def is_damage(error: OSError) -> bool:
    """Returns whether an error means a damaged file, not a passing fault of process or network."""
    return error.errno in _DAMAGE_ERRNOS


def move_aside(folder: Path):
    """Renames `5` to `5.damaged`, or to `5.damaged-2` if that exists."""
    target, count = folder.with_name(f"{folder.name}.damaged"), 1
    while target.exists():
        count += 1
        target = folder.with_name(f"{folder.name}.damaged-{count}")
    folder.rename(target)


def file_sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, files: dict[str, dict[str, Any]]):
    partial = folder / f"{NAME}.partial"
    with partial.open("w") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / NAME)


def _list_files(folder: Path) -> dict[str, Path]:
    """Returns the regular files below a folder by relative name, without those written later."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and not (path.parent == folder and path.name in (*_WRITTEN_LATER, NAME, f"{NAME}.partial"))
    }
