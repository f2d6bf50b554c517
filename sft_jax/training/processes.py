"""Runs of several processes: connecting, synchronising and ending them.

One process runs on every host (or for every GPU). `jax.distributed` connects them at the address
of the first one, the coordinator, which also watches their heartbeats.
"""

import atexit
import contextlib
import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sft_jax.types import ConfigError

# Dead processes are noticed earlier; preparing large data may take this long.
_PATIENCE_MS = 12 * 3600 * 1000

# Names follow JAX; a flag takes precedence over its variable.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_index": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Arguments of `jax.distributed.initialize`, which detects those that are None.

    Attributes:
        coordinator: Address `host:port` of process 0.
        count: Number of processes.
        index: Index of this process.
        local_devices: Devices of this host that belong to this process; empty means all.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None


def requested(
    coordinator: str | None,
    num_processes: int | None,
    process_index: int | None,
    distributed: bool | None,
    environ: Mapping[str, str],
) -> Processes | None:
    """Processes to join, from flags and environment; None for a single process.

    Args:
        coordinator: Flag, `host:port`.
        num_processes: Flag.
        process_index: Flag.
        distributed: Flag: true lets JAX detect missing values (on TPU slices, Slurm, Open MPI and
            Kubernetes), false runs a single process, None detects them if Slurm or Open MPI has
            started several processes.
        environ: Environment variables.

    Raises:
        ConfigError: Values are invalid, or only some of the three are given.
    """
    values: dict[str, Any] = {
        "coordinator": coordinator or environ.get(VARIABLES["coordinator"]),
        "num_processes": _number("num_processes", num_processes, environ),
        "process_index": _number("process_index", process_index, environ),
    }
    if distributed is False:
        flags = {"coordinator": coordinator, "num_processes": num_processes}
        _refuse_beside_nodistributed({**flags, "process_index": process_index})
        return None
    detects = distributed or (_launched(environ) and None in values.values())
    missing = [name for name, value in values.items() if value is None]
    if not detects and len(missing) == len(values):
        return None
    if not detects and missing:
        known = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        wanted = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
        raise ConfigError(
            f"processes: given only {known}, expected coordinator, num_processes and process_index "
            f"together; add {wanted}, or --distributed to have them detected on a TPU slice, under "
            "Slurm or Open MPI"
        )
    _check(**values)
    if values["num_processes"] == 1:
        return None
    return Processes(
        coordinator=values["coordinator"],
        count=values["num_processes"],
        index=values["process_index"],
        local_devices=_local_devices(environ),
    )


def _number(name: str, flag: int | None, environ: Mapping[str, str]) -> int | None:
    text = environ.get(VARIABLES[name])
    if flag is not None or not text:
        return flag
    if not text.isdecimal():
        raise ConfigError(
            f"{VARIABLES[name]}: given {text!r} in the environment, expected a whole number; "
            f"correct it, or give --{name}"
        )
    return int(text)


def _refuse_beside_nodistributed(flags: dict[str, str | int | None]):
    for name, value in flags.items():
        if value is not None:
            raise ConfigError(
                f"{name}: given {value} with --nodistributed, which runs a single process; omit "
                "one of the two"
            )


def _launched(environ: Mapping[str, str]) -> bool:
    """Whether Slurm or Open MPI started this process as one of several."""
    totals = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(int(environ.get(name, "1")) > 1 for name in totals)


def _local_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """All devices if this process is the only one on its host; otherwise JAX decides.

    Under Slurm and Open MPI, JAX would give every process one device.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks, nodes = (
        environ.get("SLURM_STEP_NUM_TASKS", "1"),
        environ.get("SLURM_STEP_NUM_NODES", "1"),
    )
    neighbours = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    return None if int(tasks) > int(nodes) or neighbours > 1 else ()


def _check(coordinator: str | None, num_processes: int | None, process_index: int | None):
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(
                f"coordinator: given {coordinator!r}, expected host:port of process 0, such as "
                "10.0.0.1:8476, with a port that is free there"
            )
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"num_processes: given {num_processes}, expected at least 1")
    if process_index is not None and not 0 <= process_index < (num_processes or 1 << 31):
        value, expected = f"{process_index}", "at least 0"
        if num_processes is not None:
            value, expected = f"{value} of {num_processes} processes", f"0 to {num_processes - 1}"
        raise ConfigError(
            f"process_index: given {value}, expected {expected}; every process has its own"
        )


def join(processes: Processes | None, heartbeat_timeout: int, startup_timeout: int):
    """Connects this process to the others, before the first use of a device.

    Args:
        processes: Result of `requested`; None for a single process.
        heartbeat_timeout: Seconds without a heartbeat after which a process counts as dead and the
            others are ended.
        startup_timeout: Seconds to wait for all processes before JAX ends this one.

    Raises:
        ConfigError: JAX detects no processes, or detects a slice that `processes` ignores.
    """
    if processes is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # Its signal handler would swallow a SIGTERM outside the loop, which has its own.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                processes.coordinator,
                processes.count,
                processes.index,
                processes.local_devices,
                initialization_timeout=startup_timeout,
                heartbeat_timeout_seconds=heartbeat_timeout,
            )
        except ValueError as error:
            raise ConfigError(
                f"distributed: given, but JAX detects no TPU slice, Slurm or Open MPI ({error}); "
                "give --coordinator, --num_processes and --process_index"
            ) from error
        _watch()
    elif jax.process_count() > 1:
        raise ConfigError(
            f"processes: found a slice with {jax.process_count()} processes, expected "
            "--distributed; add it to join them"
        )


_REMEDY = (
    "another process is gone: see what it said last, then start all of them again with the same "
    "commands, which go on from the newest checkpoint."
)
_watchers: list[subprocess.Popen] = []


def _watch():
    """Starts a shell that prints a remedy if this process is ended from outside.

    If heartbeats are missed or the coordinator is gone, JAX ends the process without running
    Python's handlers. The shell waits on a pipe that closes with this process, and is told of a
    normal exit.
    """
    where = f"process {jax.process_index()} of {jax.process_count()}"
    message = f"{where}: was ended. If JAX did so, {_REMEDY}"
    command = ["/bin/sh", "-c", 'read -r word || echo "$0" >&2', message]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    atexit.register(_dismiss)


def _dismiss():
    """Tells the shell that this process exits normally."""
    while _watchers:
        # A signal to the process group may have ended it before.
        with contextlib.suppress(BrokenPipeError):
            _watchers.pop().communicate(b"ends\n")


def sync_processes(name: str):
    """Waits until all processes have reached this call; returns at once for a single one.

    Processes prepare data at different speeds, but Gloo waits only half a minute for a connection.
    So they are synchronised before the first collective operation.

    Args:
        name: Unique name of the barrier.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE_MS)
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def shutdown_on_exit() -> Iterator[None]:
    """Ends a connected process at once after an error.

    A normal exit would wait for the other processes, which would never learn of the error; they do
    notice if this process is gone.
    """
    try:
        yield
        _dismiss()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else None
        is_normal = isinstance(error, SystemExit) and not code
        _dismiss()
        if is_normal or not jax.distributed.is_initialized():
            raise
        where = f"process {jax.process_index()} of {jax.process_count()}"
        interrupted = isinstance(error, KeyboardInterrupt)
        is_explained = isinstance(code, str) or interrupted
        text = "interrupted" if interrupted else code if is_explained else traceback.format_exc()
        print(f"{where}: {text}", file=sys.stderr, flush=True)
        if not is_explained:
            print(f"If this is about a connection, {_REMEDY}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)
