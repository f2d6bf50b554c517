"""Errors about the layout of a user's files, all of one form."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_jax.types import CheckpointError, DataError

# What the machine is divided into says how much of it a container has.
_GROUP_FILES = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_STATUS = Path("/proc/self/status")
# Full, over its quota, not to be written to, a file that grows too large, a sector that fails.
NUMBERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EFBIG, errno.EIO),
)


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
    limit = memory_limit()
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


def memory_limit() -> int:
    """Bytes this process can have at most: of the machine, its container and its own limits."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _GROUP_FILES:
        file = Path(name)
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits + _left_of_own_limits())


def _left_of_own_limits() -> list[int]:
    """What `ulimit` leaves, where it limits anything and the system says what is used."""
    if not _STATUS.is_file():
        return []
    import resource  # where there is such a file, there is this module

    left = []
    for kind, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            lines = _STATUS.read_text().splitlines()
            used = next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
            left.append(max(0, limit - used))
    return left


def is_at_fault(error: BaseException) -> bool:
    """Whether an error of writing is the disk's, and not that of a lost connection, for example.

    TensorStore passes on the system's words alone, in a `ValueError`.
    """
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError)
    return any(os.strerror(number) in str(error) for number in NUMBERS)


@contextmanager
def on_disk(
    workdir: Path, then: str = ", which goes on from the newest checkpoint"
) -> Iterator[None]:
    """Turns what a full, unwritable or failing disk raises into an error that says what to do.

    Args:
        workdir: where something is written.
        then: what the same command does when it is given again.

    Raises:
        CheckpointError: the disk is full, or may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NUMBERS:
            raise
        raise CheckpointError(
            f"{error.filename or workdir}: could not be used ({error.strerror}); see that the disk "
            "has room and that what is there may be read and written, then give the same command "
            f"again{then}"
        ) from error
