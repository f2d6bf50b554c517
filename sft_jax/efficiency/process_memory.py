"""The most memory of a process that runs one model and nothing else."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency.measure import candidate
from sft_jax.efficiency.throughput import peak_memory


def peak_alone(run: Callable[..., Any], *args: Any) -> int:
    """Most bytes that a process of its own held while it imported, compiled and ran something.

    Args:
        run: a function that a process can import.
        *args: its arguments, which must be picklable.
    """
    # Forked, it would begin with everything that is held here.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_peak_after, run, args).result()


def run_once(config: Config):
    """One training step and one evaluation of a configuration."""
    entry = candidate(config)
    jax.block_until_ready([entry.train(), entry.infer()])


def _peak_after(run, args):
    run(*args)
    return peak_memory()
