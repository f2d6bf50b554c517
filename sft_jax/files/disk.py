"""What a full, unwritable or failing disk raises, as an error that says what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_jax.types import CheckpointError

# Full, over its quota, not to be written to, a file that grows too large, a sector that fails.
NUMBERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EFBIG, errno.EIO),
)


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
