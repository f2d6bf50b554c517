"""Metrics of training steps: kept on the device until they are due, then checked and logged."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sft_jax.runs.metric_log import MetricLog
from sft_jax.training.step import Metrics
from sft_jax.types import NonFiniteError


def means(steps: Sequence[Mapping[str, tuple[Any, Any]]]) -> dict[str, Any]:
    """Means of metrics over several steps, from the `(sum, count)` of each; 0 if the count is 0.

    The values are numbers, or arrays if the sums have an axis of runs.
    """
    values = {}
    for name in steps[0]:
        total, count = (np.sum([step[name][part] for step in steps], axis=0) for part in (0, 1))
        values[name] = total / np.where(count > 0, count, 1)
    return values


class Recorder:
    """Collects the metrics of training steps and writes them to a log; a context manager."""

    def __init__(self, log: MetricLog | None, shown: Sequence[str], steps_per_epoch: int):
        """Starts the clock for `samples_per_second`.

        Args:
            log: Log to write to; None in processes that do not write.
            shown: Metrics for the progress bar; they come first in the log.
            steps_per_epoch: Optimizer steps per epoch.
        """
        self._log, self._shown, self._steps_per_epoch = log, shown, steps_per_epoch
        self._pending: list[tuple[int, Metrics]] = []
        self._since = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._log is not None:
            self._log.close()

    def add(self, step: int, metrics: Metrics):
        """Adds the metrics of a step without waiting for them."""
        self._pending.append((step, metrics))

    def flush(self, explain: Callable[[int], str]) -> dict[str, str]:
        """Fetches, checks and writes the pending metrics.

        Args:
            explain: Function from a step to the cause of its non-finite metrics.

        Returns:
            Formatted values of the shown metrics, by name.

        Raises:
            NonFiniteError: A metric is not finite; names the first such step.
        """
        if not self._pending:
            return {}
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending = []
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        for step, metrics in fetched:
            sums = {name: metric[0] for name, metric in metrics.items()}
            check_finite(step, sums, "data of that step", explain)
        averages = means([metrics for _, metrics in fetched])
        order = dict.fromkeys((*self._shown, *averages))
        values = {name: float(averages[name]) for name in order}
        step, newest = fetched[-1]
        samples = values.pop("samples") * len(fetched)
        values["learning_rate"] = float(newest["learning_rate"][0])
        values["samples_per_second"] = samples / max(seconds, 1e-9)
        self._write("train", step, values)
        return {name: f"{values[name]:.4f}" for name in self._shown}

    def validated(self, step: int, values: Mapping[str, float], explain: Callable[[int], str]):
        """Checks and writes the metrics of a validation.

        Raises:
            NonFiniteError: A metric is not finite.
        """
        check_finite(step, values, "validation data", explain)
        self._write("valid", step, dict(values))
        if self._log is not None:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            tqdm.write(f"step {step} (epoch {self._epoch(step):.4g}): validation {numbers}")
        self._since = time.perf_counter()

    def _epoch(self, step: int) -> float:
        return step / self._steps_per_epoch

    def _write(self, kind: str, step: int, values: dict[str, float]):
        if self._log is not None:
            self._log.write(kind, step, values, epoch=self._epoch(step))


def check_finite(step: int, values: Mapping[str, Any], suspect: str, explain: Callable[[int], str]):
    """Raises `NonFiniteError` for the first value that is not finite, with its cause.

    Args:
        step: Optimizer step of the values.
        values: Metrics by name.
        suspect: Data that the message advises to inspect.
        explain: Function from the step to a clause that states the cause, or "".
    """
    for name, value in values.items():
        if not np.isfinite(value):
            problem = f"step {step}: metric {name!r} is {value}, expected a finite number"
            tqdm.write(problem, file=sys.stderr)  # finding the cause may take a while
            failure = None
            try:
                cause = explain(step)
            # The problem itself matters more than a failure to explain it, such as a full disk.
            except Exception as error:
                failure = error
                cause = f"its cause could not be found ({type(error).__name__}: {error})"
            raise NonFiniteError(
                f"{problem}; {f'{cause}. The' if cause else 'the'} newest checkpoint is from "
                f"before it. Lower optimizer.learning_rate, or look at the {suspect}"
            ) from failure
