"""The training loop: side effects around the compiled step, in order.

Every step takes a batch and leaves its metrics on the device. When due, in this order: fetch and
check the metrics, write the log, validate, save the best checkpoint, save the last one.
"""

import dataclasses
import functools
import sys
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
from sft_jax.tasks.base import Task
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.diagnosis import Diagnosis, Replay, scale_like
from sft_jax.training.optimizer import Schedule
from sft_jax.training.recorder import Recorder
from sft_jax.training.sharding import put_batch
from sft_jax.training.signals import stop_requests
from sft_jax.training.state import Progress, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Objects and functions that the loop calls.

    Attributes:
        task: Task whose metrics are logged and choose the best checkpoint.
        step: Compiled `(state, batch) -> (state, metrics)`.
        batches: Endless iterator with `get_state` and `set_state`.
        validate: Validation, `(params) -> {metric: value}`; None without a validation split.
        checkpoints: Storage of states.
        mesh: Mesh of the step.
        first: Function that draws the first state again, to repeat steps from there.
        diagnosis: Explanations of non-finite numbers; None gives none.
        begin: Function that is called before the first step, if there is one to take.
    """

    task: Task
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    batches: Any
    validate: Callable[[Any], dict[str, float]] | None
    checkpoints: Checkpoints
    mesh: Mesh
    first: Callable[[], TrainState] | None = None
    diagnosis: Diagnosis | None = None
    begin: Callable[[], None] = lambda: None

    def explain(self, params: Any, step: int) -> str:
        """The cause of a fault in the validation of `params`, or "" if unknown."""
        if self.diagnosis is None or jax.process_count() > 1:
            return ""
        return self.diagnosis.of_validation(params)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a training.

    Attributes:
        step: Optimizer steps taken.
        finished: Whether the schedule was completed or stopped early; false after a signal.
        best: Best value of the metric that chooses checkpoints, or None.
        best_step: Step of that value.
        stopped_by: Signal that stopped this process, or None.
        stopped_early: Whether `train.patience` ended the training.
    """

    step: int
    finished: bool
    best: float | None
    best_step: int
    stopped_by: Signals | None = None
    stopped_early: bool = False


def train(
    config: Config,
    schedule: Schedule,
    parts: Parts,
    abstract: TrainState,
    state: TrainState,
    workdir: Path,
) -> Outcome:
    """Trains to the end of the schedule, starting from the newest checkpoint if there is one.

    Training ends before it once `train.patience` is used up; resumed after that, it does nothing.
    On SIGTERM, Ctrl-C and SIGHUP, it finishes the step, saves and returns.

    Args:
        config: Resolved configuration.
        schedule: Durations in optimizer steps.
        parts: Objects and functions to call.
        abstract: Abstract state, to restore checkpoints into.
        state: First state, used (and donated) if there is no checkpoint.
        workdir: Folder for the logs.

    Raises:
        NonFiniteError: A metric is NaN or infinite; the newest checkpoint precedes it.
    """
    replay = Replay(
        step=parts.step,
        batches=parts.batches,
        checkpoints=parts.checkpoints,
        mesh=parts.mesh,
        first=parts.first,
        diagnosis=parts.diagnosis,
        abstract=abstract,
    )
    state, progress = replay.newest(lambda: state)
    first = int(jax.device_get(state.step))
    is_main_process = jax.process_index() == 0  # one process writes for all
    stopped_early = _patience_is_used_up(config, progress)
    if is_main_process and first:
        remaining = schedule.total - first
        status = f"{remaining} steps left"
        if stopped_early:
            status = (
                f"training stopped early there (train.patience={config.train.patience}); nothing "
                "is left to do"
            )
        elif remaining <= 0:
            status = "no steps left; to train longer, raise train.duration"
        print(f"resuming from the checkpoint of step {first}: {status}", flush=True)
    if first < schedule.total and not stopped_early:
        parts.begin()
    log = MetricLog(workdir, first) if is_main_process else None
    recorder = Recorder(log, parts.task.logged, schedule.steps_per_epoch)
    quiet = None if is_main_process else True
    bar = tqdm(total=schedule.total, initial=first, disable=quiet, unit="step", smoothing=0.05)
    stopped = False
    with bar, recorder, stop_requests() as requested:
        for step in range(first + 1, first + 1 if stopped_early else schedule.total + 1):
            with jax.transfer_guard("disallow"):
                state, metrics = parts.step(state, put_batch(next(parts.batches), parts.mesh))
            recorder.add(step, metrics)
            bar.update()
            last = step == schedule.total
            logs = step % config.train.log_every == 0
            stopped = _agree_to_stop(requested() is not None, logs)
            if stopped and is_main_process:
                tqdm.write(f"stopping after step {step}: saving", file=sys.stderr)
            evaluates = parts.validate and (step % schedule.eval_every == 0 or last)
            saves = step % schedule.checkpoint_every == 0 or last or stopped
            if logs or evaluates or saves:
                bar.set_postfix(recorder.flush(functools.partial(replay.explain, state)))
            if evaluates or saves:
                progress = dataclasses.replace(progress, data=parts.batches.get_state())
            if evaluates and parts.validate is not None:
                values = parts.validate(state.params)
                recorder.validated(step, values, functools.partial(parts.explain, state.params))
                state, progress, is_best = _judge(
                    config, schedule, parts.task, state, progress, step, values
                )
                replay.scales[step] = progress.plateau
                if is_best:
                    parts.checkpoints.save("best", state, progress)
                stopped_early = _patience_is_used_up(config, progress)
            if saves or stopped_early:
                parts.checkpoints.save("last", state, progress)
            if stopped or stopped_early:
                break
        parts.checkpoints.wait()
    step = int(jax.device_get(state.step))
    return Outcome(
        step=step,
        finished=stopped_early or step >= schedule.total,
        best=progress.best,
        best_step=progress.best_step,
        stopped_by=requested(),
        stopped_early=stopped_early and step < schedule.total,
    )


def _patience_is_used_up(config: Config, progress: Progress) -> bool:
    return 0 < config.train.patience <= progress.stale


def _judge(
    config: Config,
    schedule: Schedule,
    task: Task,
    state: TrainState,
    progress: Progress,
    step: int,
    values: dict[str, float],
) -> tuple[TrainState, Progress, bool]:
    """Applies the plateau rule, and decides whether a validation is the best so far.

    One that is not due, at the end of training, may be the best but counts for neither rule, so
    that a run that is continued goes on as if it had been longer from the start.
    """
    due = step % schedule.eval_every == 0
    if due and config.optimizer.schedule == "plateau":
        plateau = progress.plateau.update(values["loss"], config.optimizer)
        progress = dataclasses.replace(progress, plateau=plateau)
        state = dataclasses.replace(state, lr_scale=scale_like(state.lr_scale, plateau))
    value = values.get(config.train.best_metric)  # None if it is undefined
    sign = 1.0 if task.metrics[config.train.best_metric].higher_is_better else -1.0
    if step < schedule.best_after:
        return state, progress, False
    if value is not None and (progress.best is None or sign * value > sign * progress.best):
        return state, dataclasses.replace(progress, best=value, best_step=step, stale=0), True
    return state, dataclasses.replace(progress, stale=progress.stale + due), False


def _agree_to_stop(signalled: bool, boundary: bool) -> bool:
    """Whether to stop: a single process at once, several at the next boundary, all together.

    Processes that stopped at different steps would wait for each other forever.
    """
    if jax.process_count() == 1:
        return signalled
    return boundary and bool(multihost_utils.process_allgather(np.array(signalled)).any())
