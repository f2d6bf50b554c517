"""File lock that admits one training at a time to the folder of a run or a study."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import jax

from sft_jax.types import CheckpointError

NAME = "train.lock"
# Raised by file systems without locks.
_UNSUPPORTED_ERRNOS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Locks the folder of a run or a study, which is created if needed, against other trainings.

    The lock is the kernel's and is released when the process ends, however it ends; the file
    stays. Of several JAX processes, the first holds the lock for all.

    Raises:
        CheckpointError: Another process holds the lock (unless `wait`), or the folder cannot be
            written to.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Append mode: the file must not be truncated before the lock is held.
        file = (folder / NAME).open("a+")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written to ({error.strerror}); make room there or give yourself "
            "the right to write, or choose another workdir"
        ) from error
    with file:
        _acquire(folder, file, wait)
        yield


def _acquire(folder: Path, file: IO[str], wait: bool):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(200).strip() or "a process"
        raise CheckpointError(
            f"{folder}: {holder} works in this folder, expected nobody; wait for it to end or stop "
            "it (it saves on SIGTERM), or choose another workdir"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED_ERRNOS:
            raise
        print(
            f"warning: {folder}: this file system has no locks ({error.strerror}); make sure that "
            "nothing else trains in this folder",
            file=sys.stderr,
        )
        return
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    # On a full disk the lock holds without a name; training reports the disk when it saves.
    except OSError as error:
        print(f"warning: {folder / NAME}: {error.strerror}", file=sys.stderr)
