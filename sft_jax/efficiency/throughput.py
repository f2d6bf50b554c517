"""Timing of compiled functions, and peak rates and memory use on this machine."""

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name", bound=Hashable)
_PEAK_SIZE = 1024
# Elements of an array that is larger than any cache.
_STREAM_SIZE = 2**24


class Timing(NamedTuple):
    """Seconds per call over several rounds."""

    median: float
    low: float
    high: float


def one_device_a_core():
    """Makes every CPU core a JAX device, unless the environment sets the number of devices.

    XLA synchronises the cores of a CPU device after every operation; shards of a batch on separate
    devices synchronise once per step. Call this before the first use of a device. Child processes
    inherit the setting.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if forced or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    os.environ["JAX_NUM_CPU_DEVICES"] = str(cores)
    jax.config.update("jax_num_cpu_devices", cores)


def time_interleaved(
    calls: Mapping[Name, Callable[[], Any]], repeats: int, window: int = 1
) -> dict[Name, Timing]:
    """Times calls in turn, so that noise on the machine affects all of them alike.

    Args:
        calls: Compiled calls by name; each returns the arrays to wait for.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive calls per round, synchronised only after the last.

    Returns:
        Median, smallest and largest seconds per call over the rounds.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            # Wait for every result, since independent calls may finish in any order.
            jax.block_until_ready([call() for _ in range(window)])
            if repeat:
                seconds[name].append((time.perf_counter() - start) / window)
    return {
        name: Timing(float(np.median(times)), min(times), max(times))
        for name, times in seconds.items()
    }


def matmul_peak(dtype: str = "float32", repeats: int = 5) -> float:
    """Operations per second of a large matrix product on all local devices, best of a few rounds.

    Each device multiplies its own square matrices, as in data-parallel training.

    Args:
        dtype: Data type of the matrices.
        repeats: Number of timed rounds.
    """
    shape = (jax.local_device_count(), _PEAK_SIZE, _PEAK_SIZE)
    sharding = _one_row_per_device()
    a = jax.device_put(jnp.ones(shape, dtype), sharding)
    product = jax.jit(jnp.matmul, out_shardings=sharding)
    timing = time_interleaved({"product": lambda: product(a, a)}, repeats)["product"]
    return 2 * shape[0] * _PEAK_SIZE**3 / timing.low


def memory_bandwidth(repeats: int = 5) -> float:
    """Bytes per second of an in-place sum of large arrays on all devices, best of a few rounds.

    This is the sum of STREAM (McCalpin, 1995, https://www.cs.virginia.edu/stream/), in place so
    that no memory is allocated while it is timed.

    Args:
        repeats: Number of timed rounds.
    """
    shape = (jax.local_device_count(), _STREAM_SIZE)
    sharding = _one_row_per_device()
    total, ones = (jax.device_put(jnp.full(shape, x, "float32"), sharding) for x in (0, 1))
    add = jax.jit(jnp.add, donate_argnums=0, out_shardings=sharding)

    def add_once():
        nonlocal total
        total = add(total, ones)
        return total

    timing = time_interleaved({"sum": add_once}, repeats)["sum"]
    return 3 * ones.nbytes / timing.low


def _one_row_per_device() -> jax.sharding.NamedSharding:
    devices = (jax.local_device_count(),)
    mesh = jax.make_mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` would include the peak of the parent process
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_of(run: Callable[[], Any]) -> int:
    """Peak bytes of a new process that imports, compiles and runs a function.

    Args:
        run: Function to call, which must be picklable.
    """
    # A forked process would start with all memory of this one.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches both processes; only this one reports it.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=quiet) as process:
        return process.submit(_peak_memory_after, run).result()


def _peak_memory_after(run: Callable[[], Any]) -> int:
    run()
    return peak_memory()
