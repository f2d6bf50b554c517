"""Errors about files and disks, and the check that data fits in memory.

Every message has one form: what was found, what was expected, and what to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_jax.types import CheckpointError, DataError

# Memory limits of the container, for version 2 and version 1 of control groups.
_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_PROCESS_STATUS = Path("/proc/self/status")

# Disk full, over quota, read-only, no permission, file too large, sector that fails.
DISK_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EFBIG, errno.EIO),
)


def layout_error(
    path: str | os.PathLike, key: str, found: Any, expected: Any, remedy: str
) -> DataError:
    """Builds an error that names the file, the entry in it, what is wrong, and what to do."""
    return DataError(f"{path}: {key}: found {found}, expected {expected}; {remedy}")


def existing_file(path: str, setting: str, expected: str) -> Path:
    """Returns the path of a configured file, with `~` expanded.

    Raises:
        DataError: There is no such file. The message says that `expected` was expected.
    """
    file = Path(path).expanduser()
    if path and file.is_file():
        return file
    if not path:
        found = "no path"
    else:
        found = f"{'a directory' if file.is_dir() else 'nothing'} at {str(file.absolute())!r}"
    raise layout_error(path or setting, setting, found, expected, path_remedy(setting))


def path_remedy(setting: str) -> str:
    """Returns advice on how to give the path of a source file."""
    return (
        f"set {setting} (--data_path on the command line), relative to the working directory or "
        "absolute (docs/data.md)"
    )


@contextmanager
def convert_errors(path: str | os.PathLike, expected: str) -> Iterator[None]:
    """Converts whatever a damaged file makes its reader raise into one `DataError`.

    The message says that `expected` was expected in the file.
    """
    try:
        yield
    except DataError:
        raise
    # A damaged file can make its reader fail in any way; all of them mean the same here.
    except Exception as error:
        raise DataError(
            f"{path}: found {type(error).__name__} ({error}), expected {expected}; the file is "
            "damaged, truncated or of another kind: get it again"
        ) from error


def check_fits(num_bytes: int, path: str | os.PathLike, key: str, remedy: str) -> None:
    """Checks that data fits in memory, before any of it is allocated.

    Raises:
        DataError: Reading the part `key` of the file takes more memory than the process can have.
    """
    limit = memory_limit()
    if num_bytes > limit:
        found = f"{num_bytes:,} bytes to hold in memory"
        raise layout_error(path, key, found, f"at most {limit:,}, the memory there is", remedy)


def memory_limit() -> int:
    """Returns the bytes this process can have, limited by machine, container and `ulimit`."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _CGROUP_LIMITS:
        file = Path(name)
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits + _remaining_ulimits())


def _remaining_ulimits() -> list[int]:
    """Returns the bytes left of each limit of `ulimit`, where one is set."""
    if not _PROCESS_STATUS.is_file():
        return []
    import resource  # exists on every system that has /proc

    remaining = []
    for kind, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            lines = _PROCESS_STATUS.read_text().splitlines()
            used = next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
            remaining.append(max(0, limit - used))
    return remaining


def is_disk_error(error: BaseException) -> bool:
    """Returns whether an error of writing comes from the disk and not, say, from a connection.

    TensorStore passes on only the text of the system's error, in a `ValueError`.
    """
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError)
    return any(os.strerror(number) in str(error) for number in DISK_ERRNOS)


@contextmanager
def convert_disk_errors(
    workdir: Path, outcome: str = ", which goes on from the newest checkpoint"
) -> Iterator[None]:
    """Converts errors of a full, read-only or failing disk into one that says what to do.

    The message ends with `outcome`: what repeating the command does.

    Raises:
        CheckpointError: The disk is full, cannot be written to, or fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        raise CheckpointError(
            f"{error.filename or workdir}: could not be used ({error.strerror}); see that the disk "
            "has room and that what is there may be read and written, then give the same command "
            f"again{outcome}"
        ) from error
