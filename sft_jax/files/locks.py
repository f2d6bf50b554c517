"""One training at a time in the folder of a run, one writer in that of a study."""

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
# Of file systems that lend no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other trainings out of a folder, which is made if need be.

    The lock is the kernel's, and gone when the process is, however it ends; the file stays. The
    first of several processes holds it for all.

    Args:
        folder: of a run or a study.
        wait: for the other process to leave, where it only passes through.

    Raises:
        CheckpointError: another process works there, or the folder cannot be written to.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # To append, since the file is another's until the lock is had.
        file = (folder / NAME).open("a+")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written to ({error.strerror}); make room there or give yourself "
            "the right to write, or choose another workdir"
        ) from error
    with file:
        _take(folder, file, wait)
        yield


def _take(folder: Path, file: IO[str], wait: bool):
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
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: {folder}: this file system lends no locks ({error.strerror}); see to it "
            "that nothing else trains in this folder",
            file=sys.stderr,
        )
        return
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    # A full disk: training says so when it saves, and the lock holds without a name.
    except OSError as error:
        print(f"warning: {folder / NAME}: {error.strerror}", file=sys.stderr)
