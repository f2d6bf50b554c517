"""The training loop: the order of side effects around the compiled step, and nothing else.

A step: next batch, compiled step, keep its metrics on the device. At a boundary, in this order:
fetch and check the metrics, write the log, validate, save the best, save the last.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from sft_jax.config.run import Config
from sft_jax.runs.metric_log import MetricLog
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.diagnosis import Diagnosis
from sft_jax.training.optimizer import Plateau
from sft_jax.training.progress import Progress
from sft_jax.training.sharding import put_batch
from sft_jax.training.signals import stop_requests
from sft_jax.training.state import TrainState
from sft_jax.types import NonFiniteError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """When things happen, in optimizer steps."""

    total: int
    eval_every: int
    checkpoint_every: int
    best_after: int
    steps_per_epoch: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Schedule":
        """The configuration's durations, counted in steps."""
        train = config.train
        return cls(
            total=train.duration.to_steps(steps_per_epoch),
            eval_every=train.eval_every.to_steps(steps_per_epoch),
            checkpoint_every=train.checkpoint_every.to_steps(steps_per_epoch),
            best_after=train.best_after.to_steps(steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything the loop calls, built by whoever starts it.

    Attributes:
        step: compiled `(state, batch) -> (state, metrics)`.
        batches: endless iterator with `get_state` and `set_state`.
        validate: `(params) -> {metric: value}`, or None without a validation split.
        checkpoints: where states go.
        mesh: of the step.
        first: draws the first state again, to go back to.
        diagnosis: what explains a number that is not finite; None leaves it unexplained.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    batches: Any
    validate: Callable[[Any], dict[str, float]] | None
    checkpoints: Checkpoints
    mesh: Mesh
    first: Callable[[], TrainState] | None = None
    diagnosis: Diagnosis | None = None

    def explain(self, params: Any, step: int) -> str:
        """Why the validation of `params` went wrong; "" where nobody can tell."""
        alone = jax.process_count() == 1
        return self.diagnosis.of_validation(params) if self.diagnosis and alone else ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        step: optimizer steps taken.
        finished: false when a signal stopped it before the end.
        best: best value of the deciding metric, or None.
        best_step: where it was reached.
        stopped_by: signal that asked this process to stop, or None.
    """

    step: int
    finished: bool
    best: float | None
    best_step: int
    stopped_by: Signals | None = None


def train(
    config: Config,
    schedule: Schedule,
    parts: Parts,
    abstract: TrainState,
    state: TrainState,
    workdir: Path,
) -> Outcome:
    """Trains to the end of the schedule, from the newest checkpoint if there is one.

    SIGTERM, Ctrl-C and SIGHUP let the step end, save and return early.

    Args:
        config: resolved configuration.
        schedule: when to do what.
        parts: what to call.
        abstract: shapes and shardings of the state, to restore into.
        state: first state, used (and donated) unless there is a checkpoint.
        workdir: for the logs.

    Raises:
        NonFiniteError: a metric is NaN or infinite; the newest checkpoint is from before it.
    """
    history = _History(parts, abstract)
    state, progress = history.newest(lambda: state)
    first = int(jax.device_get(state.step))
    speaks = jax.process_index() == 0  # one process writes for all
    if speaks and first:
        over = "nothing is left to train; to train longer, begin a new workdir"
        then = over if first >= schedule.total else f"{schedule.total - first} steps are left"
        print(f"going on from the checkpoint of step {first}: {then}", flush=True)
    recorder = _Recorder(MetricLog(workdir, first) if speaks else None, schedule)
    quiet = None if speaks else True
    bar = tqdm(total=schedule.total, initial=first, disable=quiet, unit="step", smoothing=0.05)
    stopped = False
    with bar, recorder, stop_requests() as requested:
        for step in range(first + 1, schedule.total + 1):
            with jax.transfer_guard("disallow"):
                state, metrics = parts.step(state, put_batch(next(parts.batches), parts.mesh))
            recorder.keep(step, metrics)
            bar.update()
            last = step == schedule.total
            logs = step % config.train.log_every == 0
            stopped = _agreed(requested() is not None, logs)
            if stopped and speaks:
                tqdm.write(f"stopping after step {step}: saving", file=sys.stderr)
            evaluates = parts.validate and (step % schedule.eval_every == 0 or last)
            saves = step % schedule.checkpoint_every == 0 or last or stopped
            if logs or evaluates or saves:
                bar.set_postfix(recorder.flush(functools.partial(history.explain, state)))
            if evaluates or saves:
                progress = dataclasses.replace(progress, data=parts.batches.get_state())
            if evaluates and parts.validate is not None:
                values = parts.validate(state.params)
                recorder.validated(step, values, functools.partial(parts.explain, state.params))
                state, progress, is_best = _judge(config, schedule, state, progress, step, values)
                history.scales[step] = progress.plateau
                if is_best:
                    parts.checkpoints.save("best", state, progress)
            if saves:
                parts.checkpoints.save("last", state, progress)
            if stopped:
                break
        parts.checkpoints.wait()
    step = int(jax.device_get(state.step))
    finished = step >= schedule.total
    return Outcome(step, finished, progress.best, progress.best_step, requested())


def _judge(
    config: Config,
    schedule: Schedule,
    state: TrainState,
    progress: Progress,
    step: int,
    values: dict[str, float],
) -> tuple[TrainState, Progress, bool]:
    """Plateau rule and best checkpoint after a validation."""
    if config.optimizer.schedule == "plateau":
        plateau = progress.plateau.update(values["loss"], config.optimizer)
        progress = dataclasses.replace(progress, plateau=plateau)
        state = dataclasses.replace(state, lr_scale=_like(state.lr_scale, plateau))
    value = values[config.train.best_metric]
    sign = -1.0 if config.train.best_metric == "loss" else 1.0
    better = progress.best is None or sign * value > sign * progress.best
    if better and step >= schedule.best_after:
        return state, dataclasses.replace(progress, best=value, best_step=step), True
    return state, progress, False


def _agreed(signalled: bool, boundary: bool) -> bool:
    """Whether to stop: at once when alone, else when any process was signalled, at a boundary.

    Processes that stopped at different steps would wait for each other for ever.
    """
    if jax.process_count() == 1:
        return signalled
    return boundary and bool(multihost_utils.process_allgather(np.array(signalled)).any())


def _like(scale: jax.Array, plateau: Plateau) -> jax.Array:
    return jax.device_put(np.float32(plateau.scale), scale.sharding)


class _Recorder:
    """Metrics of the last steps: on the device until asked for, then checked and written."""

    def __init__(self, log: MetricLog | None, schedule: Schedule):
        self._log, self._schedule = log, schedule
        self._pending: list[tuple[int, Any]] = []
        self._since = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._log is not None:
            self._log.close()

    def keep(self, step: int, metrics: Any):
        self._pending.append((step, metrics))

    def flush(self, explain: Callable[[int], str]) -> dict[str, str]:
        """Fetches what is pending; raises on the first step with a metric that is not finite."""
        if not self._pending:
            return {}
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending = []
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        for step, metrics in fetched:
            _check_finite(step, metrics, "data of that step", explain)
        total = {name: float(sum(m[name] for _, m in fetched)) for name in fetched[0][1]}
        values = {name: total[name] / max(total["count"], 1.0) for name in ("loss", "top1")}
        values["gradient_norm"] = total["gradient_norm"] / len(fetched)
        step, newest = fetched[-1]
        values["learning_rate"] = float(newest["learning_rate"])
        values["samples_per_second"] = total["count"] / max(seconds, 1e-9)
        self._write("train", step, values)
        return {name: f"{values[name]:.4f}" for name in ("loss", "top1")}

    def validated(self, step: int, values: dict[str, float], explain: Callable[[int], str]):
        _check_finite(step, values, "validation data", explain)
        self._write("valid", step, values)
        if self._log is not None:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            tqdm.write(f"step {step} (epoch {self._epoch(step):.4g}): validation {numbers}")
        self._since = time.perf_counter()

    def _epoch(self, step: int) -> float:
        return step / self._schedule.steps_per_epoch

    def _write(self, kind: str, step: int, values: dict[str, float]):
        if self._log is not None:
            self._log.write(kind, step, values, epoch=self._epoch(step))


def _check_finite(step: int, values: dict[str, Any], suspect: str, explain: Callable[[int], str]):
    for name, value in values.items():
        if not np.isfinite(value):
            found = f"step {step}: metric {name!r} is {value}, expected a finite number"
            tqdm.write(found, file=sys.stderr)  # looking for the cause may take a while
            failure = None
            try:
                cause = explain(step)
            # Whatever goes wrong then, such as a full disk, is less than what is known already.
            except Exception as error:
                failure = error
                cause = f"its cause could not be found ({type(error).__name__}: {error})"
            raise NonFiniteError(
                f"{found}; {f'{cause}. The' if cause else 'the'} newest checkpoint is from before "
                f"it. Lower optimizer.learning_rate, or look at the {suspect}"
            ) from failure


class _History:
    """What it takes to come back to a step that is over: where the run began, what it changed.

    The state has moved on when a metric is seen not to be finite, and a copy of every state would
    cost more than the metric. But steps repeat themselves: those since the newest checkpoint, which
    is from before the fault, are taken once more, with the same data.
    """

    def __init__(self, parts: Parts, abstract: TrainState):
        self._parts, self._abstract = parts, abstract
        self._begin = Progress(data=parts.batches.get_state())
        self._first: int | None = None
        self.scales: dict[int, Plateau] = {}  # after validations since the first step, by step

    def newest(self, first: Callable[[], TrainState]) -> tuple[TrainState, Progress]:
        """The newest checkpoint, or the first state where there is none, and batches from there."""
        resumed = self._parts.checkpoints.resume(self._abstract)
        state, progress = (None, self._begin) if resumed is None else resumed
        self._parts.batches.set_state(progress.data)
        state = first() if state is None else state
        if self._first is None:
            self._first = int(jax.device_get(state.step))
        return state, progress

    def explain(self, state: TrainState, step: int) -> str:
        """Why `step` went wrong; "" where nobody can tell. Frees `state`, which came of it."""
        parts = self._parts
        # Processes would have to repeat steps together, and one that fails alone would hang all.
        if parts.diagnosis is None or parts.first is None or jax.process_count() > 1:
            return ""
        jax.tree.map(lambda x: x.delete(), state)
        parts.checkpoints.wait()
        state, _ = self.newest(parts.first)
        first = int(jax.device_get(state.step))
        if self._first is None or first < self._first:
            return ""  # a checkpoint was lost meanwhile, and what was before it is not known here
        tqdm.write(f"repeating steps {first + 1} to {step} to see why", file=sys.stderr)
        for done in range(first, step - 1):
            state, _ = parts.step(state, put_batch(next(parts.batches), parts.mesh))
            if done + 1 in self.scales:
                scale = _like(state.lr_scale, self.scales[done + 1])
                state = dataclasses.replace(state, lr_scale=scale)
        batch = next(parts.batches)
        before = jax.device_get(state.params)  # since the step takes its state
        metrics = jax.device_get(parts.step(state, put_batch(batch, parts.mesh))[1])
        if np.isfinite(list(metrics.values())).all():
            return (
                f"but step {step}, repeated from the state of step {first}, has finite metrics, so "
                "the machine did not compute the same twice: look whether its programs may (sums "
                "of a GPU may come in any order), or check its memory and devices"
            )
        return parts.diagnosis.of_step(before, batch, step - 1)
