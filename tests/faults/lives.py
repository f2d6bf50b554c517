"""A life: one training in a child process, from its start to its end, whoever brings that about.

The process that this module is imported by holds everything that training imports, but no JAX
backend and no thread: so a fork of it is a sound process, and starts in milliseconds.
"""

import ctypes
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from sft_jax.types import CheckpointError, ConfigError, DataError, NonFiniteError

NAMED = (ConfigError, DataError, CheckpointError, NonFiniteError)
UNNAMED = 70  # exit code of a life that ended with any other error
_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a life ended.

    Attributes:
        code: exit code, or minus the signal that ended it.
        said: what it wrote to both its outputs.
        seconds: of processors' time.
    """

    code: int
    said: str
    seconds: float

    @property
    def named(self) -> bool:
        """Whether it ended with an error that names its remedy."""
        return self.code == 1 and any(f"{error.__name__}: " in self.said for error in NAMED)

    @property
    def last_words(self) -> str:
        """The line that says why it ended."""
        names = (
            *(f"{error.__name__}: " for error in NAMED),
            "Terminating process",
            "Error",
            "error",
        )
        lines = [line.strip() for line in self.said.splitlines()]
        for name in names:
            for line in reversed(lines):
                if name in line:
                    return line[:400]
        return (lines or [""])[-1][:400]


class Life:
    """A child process that has been started."""

    def __init__(self, act: Callable[[], None], log: Path):
        """Forks; the child calls `act` and ends, 0 if that returns.

        Args:
            act: what the child does; its first use of a JAX device must lie in it.
            log: where both outputs of the child go, to be appended to.
        """
        alone()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self._ended: Ended | None = None
        if not self.pid:
            _be_born(act, log, parent)

    def poll(self) -> Ended | None:
        """How it ended, or None while it goes on."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float = 600.0) -> Ended:
        """Waits until it ends.

        Raises:
            TimeoutError: it does not; it is killed.
        """
        limit = time.monotonic() + timeout
        while (ended := self.poll()) is None:
            if time.monotonic() > limit:
                self.kill()
                said = self._reap(0)
                raise TimeoutError(f"a training hung for {timeout:.0f} s: {said}")
            time.sleep(0.005)
        return ended

    def kill(self):
        """SIGKILL."""
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals):
        """Any signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def seconds(self) -> float:
        """Processors' time that it has used, of all its threads; infinite once it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return float("inf")
        return float("inf") if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / _TICK

    def _reap(self, options: int) -> Ended | None:
        if self._ended is None:
            pid, status, usage = os.wait4(self.pid, options)
            if not pid:
                return None
            with self._log.open("rb") as file:
                file.seek(self._offset)
                said = file.read().decode(errors="replace")
            seconds = usage.ru_utime + usage.ru_stime
            self._ended = Ended(os.waitstatus_to_exitcode(status), said, seconds)
        return self._ended


def alone():
    """Makes sure that a fork is sound.

    Raises:
        RuntimeError: this process has other threads, whose locks a child would inherit for ever.
    """
    count = len(os.listdir("/proc/self/task"))
    if count > 1:
        raise RuntimeError(
            f"found {count} threads, expected one before a fork; start with OPENBLAS_NUM_THREADS=1 "
            "and use no JAX device in this process"
        )


def end_with_parent(parent: int):
    """Lets this process be killed when `parent`, which started it, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Event(ctypes.Structure):
    """`struct sigevent`: a signal (0) of some number."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: interval and value, in seconds and nanoseconds."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns"))


def signal_after(seconds: float, number: signal.Signals):
    """Lets the kernel send this process a signal once it has used so much of the processors' time.

    To the tick, however busy the machine is, which a process that looks on cannot promise.
    """
    libc, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = _Event(number=number)
    left = max(1, int((seconds - time.process_time()) * 1e9))
    times = _Times(s=left // 10**9, ns=left % 10**9)
    if libc.timer_create(
        time.CLOCK_PROCESS_CPUTIME_ID, ctypes.byref(event), ctypes.byref(timer)
    ) or libc.timer_settime(timer, 0, ctypes.byref(times), None):
        raise OSError(ctypes.get_errno(), "no timer of the processors' time")


def _be_born(act: Callable[[], None], log: Path, parent: int):
    code = UNNAMED
    try:
        end_with_parent(parent)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        logging.set_verbosity(logging.WARNING)
        act()
        code = 0
    except NAMED as error:
        # As `sft_jax.cli.run` says it.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def settle_devices(devices: int, cache: Path | None):
    """What the child does first: so many CPU devices, and where compiled programs are kept."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
