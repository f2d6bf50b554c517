"""Measured time of compiled functions, and what the machine could do at best."""

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name", bound=Hashable)
_PEAK_SIZE = 1024
# Numbers of an array that no cache holds.
_STREAM_SIZE = 2**24


class Timing(NamedTuple):
    """Seconds of a call over several repetitions."""

    median: float
    low: float
    high: float


def one_device_a_core():
    """Makes every core here a JAX device, unless the environment says how many there are to be.

    XLA runs the operations of one CPU device one after the other, and waits for all cores after
    each; shards of a batch on devices of their own meet once a step. To be called before the first
    use of a device; processes started from here do the same.
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
    """Times calls in turn, so that a noisy machine harms all of them alike.

    Args:
        calls: by name; each returns the arrays to wait for, and has been compiled before.
        repeats: counted rounds, after one that is not.
        window: calls of one kind in a row, waited for together behind the last.

    Returns:
        Median, smallest and largest seconds of one call each, over the rounds.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            # All of them: calls that do not depend on each other may end in any order.
            jax.block_until_ready([call() for _ in range(window)])
            if repeat:
                seconds[name].append((time.perf_counter() - start) / window)
    return {
        name: Timing(float(np.median(taken)), min(taken), max(taken))
        for name, taken in seconds.items()
    }


def matmul_peak(dtype: str = "float32", repeats: int = 5) -> float:
    """Operations a second of a large product on all devices here, the best of a few.

    Each device multiplies its own square matrices, as in data-parallel training.

    Args:
        dtype: of the matrices.
        repeats: timed rounds.
    """
    shape = (jax.local_device_count(), _PEAK_SIZE, _PEAK_SIZE)
    mesh = jax.make_mesh(shape[:1], ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    a = jax.device_put(jnp.ones(shape, dtype), placed)
    product = jax.jit(jnp.matmul, out_shardings=placed)
    timing = time_interleaved({"product": lambda: product(a, a)}, repeats)["product"]
    return 2 * shape[0] * _PEAK_SIZE**3 / timing.low


def memory_bandwidth(repeats: int = 5) -> float:
    """Bytes a second read and written by a sum of large arrays on all devices, the best of a few.

    The sum of STREAM (McCalpin, 1995, https://www.cs.virginia.edu/stream/), in place, so that no
    memory is asked for while it is timed.

    Args:
        repeats: timed rounds.
    """
    shape = (jax.local_device_count(), _STREAM_SIZE)
    mesh = jax.make_mesh(shape[:1], ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    total, step = (jax.device_put(jnp.full(shape, x, "float32"), placed) for x in (0, 1))
    add = jax.jit(jnp.add, donate_argnums=0, out_shardings=placed)
    holder = [total]

    def once():
        holder[0] = add(holder[0], step)
        return holder[0]

    timing = time_interleaved({"sum": once}, repeats)["sum"]
    return 3 * step.nbytes / timing.low


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once since it began."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` there begins with the peak of the process that started it
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
