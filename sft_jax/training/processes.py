"""Several processes as one run: joining, synchronising and leaving them.

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

# A process that dies is noticed before; one that prepares large data may take long.
_PATIENCE_MS = 12 * 3600 * 1000

# Named as JAX names its own; a flag comes before its variable.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_index": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """What `jax.distributed.initialize` is told; None is left to it to find out.

    Attributes:
        coordinator: `host:port` of process 0, the same for all.
        count: of processes.
        index: of this one.
        local_devices: of this host that are this process's; empty for all of them.
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
    """Whom to join, from flags and environment; None runs alone.

    Args:
        coordinator: flag, `host:port`.
        num_processes: flag.
        process_index: flag.
        distributed: flag: true lets JAX detect what is not given (TPU slices, Slurm, Open MPI,
            Kubernetes), false runs alone whatever the environment says, None detects where Slurm
            or Open MPI has started several processes.
        environ: the environment.

    Raises:
        ConfigError: values that are no numbers, out of range, or only some of the three.
    """
    given: dict[str, Any] = {
        "coordinator": coordinator or environ.get(VARIABLES["coordinator"]),
        "num_processes": _number("num_processes", num_processes, environ),
        "process_index": _number("process_index", process_index, environ),
    }
    if distributed is False:
        flags = {"coordinator": coordinator, "num_processes": num_processes}
        _refuse_beside_nodistributed({**flags, "process_index": process_index})
        return None
    detects = distributed or (_launched(environ) and None in given.values())
    missing = [name for name, value in given.items() if value is None]
    if not detects and len(missing) == len(given):
        return None
    if not detects and missing:
        found = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        wanted = " and ".join(f"--{name} (or {VARIABLES[name]})" for name in missing)
        raise ConfigError(
            f"processes: given only {found}, expected coordinator, num_processes and process_index "
            f"together; add {wanted}, or --distributed to have them detected on a TPU slice, under "
            "Slurm or Open MPI"
        )
    _check(**given)
    if given["num_processes"] == 1:
        return None
    return Processes(
        coordinator=given["coordinator"],
        count=given["num_processes"],
        index=given["process_index"],
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
                f"{name}: given {value} with --nodistributed, which runs alone; leave one of the "
                "two out"
            )


def _launched(environ: Mapping[str, str]) -> bool:
    """Whether Slurm or Open MPI started this process as one of several."""
    totals = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(int(environ.get(name, "1")) > 1 for name in totals)


def _local_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """All devices for a process that is alone on its host, JAX's own rule otherwise.

    JAX gives one device to every process under Slurm and Open MPI, however few processes there are.
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
        given, expected = f"{process_index}", "at least 0"
        if num_processes is not None:
            given, expected = f"{given} of {num_processes} processes", f"0 to {num_processes - 1}"
        raise ConfigError(
            f"process_index: given {given}, expected {expected}; every process has its own"
        )


def join(processes: Processes | None, heartbeat_timeout: int, startup_timeout: int):
    """Connects this process with the others, before the first use of a device.

    Args:
        processes: from `requested`; None stays alone.
        heartbeat_timeout: seconds without a sign of life after which a process counts as dead,
            and the others are ended.
        startup_timeout: seconds to wait for all of them to come; JAX then ends the process.

    Raises:
        ConfigError: nothing detected, or a slice that was to be joined.
    """
    if processes is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # Its signal handler would swallow a SIGTERM outside of training; the loop has its own.
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
            f"processes: found a slice with {jax.process_count()} of them, expected to be told to "
            "join them; add --distributed"
        )


_REMEDY = (
    "another process is gone: see what it said last, then start all of them again with the same "
    "commands, which go on from the newest checkpoint."
)
_watchers: list[subprocess.Popen] = []


def _watch():
    """Lets a shell say what to do where this process is ended before it can.

    Where heartbeats are missed or the coordinator is gone, JAX ends a process past all handlers of
    Python's, and its words name no remedy. The shell waits at a pipe that is closed with this
    process, and is told of a usual end.
    """
    where = f"process {jax.process_index()} of {jax.process_count()}"
    said = f"{where}: was ended. If JAX did so, {_REMEDY}"
    command = ["/bin/sh", "-c", 'read -r word || echo "$0" >&2', said]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    atexit.register(_dismiss)


def _dismiss():
    """Tells the shell that this process ends by itself."""
    while _watchers:
        # It may be gone before, by a signal to the whole group.
        with contextlib.suppress(BrokenPipeError):
            _watchers.pop().communicate(b"ends\n")


def sync_processes(name: str):
    """Waits until all processes have reached this call; returns at once for a single one.

    Processes prepare data at different speeds, and Gloo gives up connecting after half a minute. So
    they wait for each other before their first collective operation.

    Args:
        name: Name of the place in the program, different for each.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE_MS)
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def shutdown_on_exit() -> Iterator[None]:
    """Ends a joined process at once when something goes wrong inside.

    At a usual exit processes wait for each other, which those that still compute would not hear of;
    they notice a process that is gone.
    """
    try:
        yield
        _dismiss()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else None
        usual = isinstance(error, SystemExit) and not code
        _dismiss()
        if usual or not jax.distributed.is_initialized():
            raise
        where = f"process {jax.process_index()} of {jax.process_count()}"
        interrupted = isinstance(error, KeyboardInterrupt)
        said = isinstance(code, str) or interrupted
        text = "interrupted" if interrupted else code if said else traceback.format_exc()
        print(f"{where}: {text}", file=sys.stderr, flush=True)
        if not said:
            print(f"If this is about a connection, {_REMEDY}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)
