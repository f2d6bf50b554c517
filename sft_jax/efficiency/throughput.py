"""Measured time of compiled functions."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds of a call over several repetitions."""

    median: float
    low: float
    high: float


def time_interleaved(
    calls: Mapping[Hashable, Callable[[], Any]], repeats: int
) -> dict[Hashable, Timing]:
    """Times calls in turn, so that a noisy machine harms all of them alike.

    Args:
        calls: by name; each returns the arrays to wait for, and has been compiled before.
        repeats: counted rounds, after one that is not.

    Returns:
        Median, smallest and largest seconds of each.
    """
    seconds: dict[Hashable, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(float(np.median(taken)), min(taken), max(taken))
        for name, taken in seconds.items()
    }
