"""The terminal of a command: output that nobody reads any more, and Ctrl-C."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator

# Of a pipe that nobody reads, and of a terminal that is closed.
_GONE = (errno.EPIPE, errno.EIO)


class _Output(io.FileIO):
    """A file descriptor whose output is dropped once nobody can read it."""

    def write(self, content):
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write there on their own, too
            os.close(nowhere)
            return memoryview(content).nbytes


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Goes on without output where the readers of stdout or stderr go away, as in `| head`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_outliving, before, (sys.__stdout__, sys.__stderr__))
    try:
        yield
    finally:
        own, (sys.stdout, sys.stderr) = (sys.stdout, sys.stderr), before
        _flush(*own)


def _outliving(stream, original):
    """`stream`, safe from readers that go away, where it is the process's own."""
    if stream is None or stream is not original:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the process on Ctrl-C with one line; a second Ctrl-C does not wait for any clean-up."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, as in the background of a shell, or handled by somebody else
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        end_by(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(*_):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def end_by(number: signal.Signals):
    """Ends the process as the signal would have, which tells a shell to end its loop or script."""
    _flush(sys.stdout, sys.stderr)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _flush(*streams):
    for stream in streams:
        if stream is not None:  # as in a process that was started without it
            stream.flush()
