"""Peak memory of a process that runs one model and nothing else."""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from sft_jax.config.run import Config
from sft_jax.efficiency.measure import candidate
from sft_jax.efficiency.throughput import peak_memory


def peak_alone(run: Callable[..., Any], *args: Any) -> int:
    """Peak bytes of a new process that imports, compiles and runs a function.

    Args:
        run: Importable function.
        *args: Its picklable arguments.
    """
    # A forked process would start with all memory of this one.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches both processes; only this one reports it.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=quiet) as process:
        return process.submit(_peak_after, run, args).result()


def run_once(config: Config):
    """Runs one training step and one evaluation of a configuration."""
    entry = candidate(config)
    jax.block_until_ready([entry.train(), entry.infer()])


def _peak_after(run, args):
    run(*args)
    return peak_memory()
