"""Replay of recent steps, to find out why one of them went wrong.

The state has moved on when a metric is seen not to be finite, and a copy of every state would cost
more than the metric. But steps are reproducible: those since the newest checkpoint, which is from
before the fault, are taken once more, with the same data.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.diagnosis import Diagnosis
from sft_jax.training.optimizer import Plateau
from sft_jax.training.progress import Progress
from sft_jax.training.sharding import put_batch
from sft_jax.training.state import TrainState


def scale_like(scale: jax.Array, plateau: Plateau) -> jax.Array:
    """The plateau rule's factor on the learning rate, placed as `scale` is."""
    return jax.device_put(np.float32(plateau.scale), scale.sharding)


class Replay:
    """What it takes to return to an earlier step: where the run began, and what it changed.

    Attributes:
        scales: State of the plateau rule after each validation since the first step, by step.
    """

    def __init__(
        self,
        *,
        step: Callable[[TrainState, Any], tuple[TrainState, Any]],
        batches: Any,
        checkpoints: Checkpoints,
        mesh: Mesh,
        first: Callable[[], TrainState] | None,
        diagnosis: Diagnosis | None,
        abstract: TrainState,
    ):
        """Takes parts of the loop (see `loop.Parts`) and the shapes of the state."""
        self._step, self._batches, self._checkpoints = step, batches, checkpoints
        self._mesh, self._first, self._diagnosis = mesh, first, diagnosis
        self._abstract = abstract
        self._begin = Progress(data=batches.get_state())
        self._first_step: int | None = None
        self.scales: dict[int, Plateau] = {}

    def newest(self, first: Callable[[], TrainState]) -> tuple[TrainState, Progress]:
        """The newest checkpoint, or the first state where there is none, and batches from there."""
        resumed = self._checkpoints.resume(self._abstract)
        state, progress = (None, self._begin) if resumed is None else resumed
        self._batches.set_state(progress.data)
        state = first() if state is None else state
        if self._first_step is None:
            self._first_step = int(jax.device_get(state.step))
        return state, progress

    def explain(self, state: TrainState, step: int) -> str:
        """Why `step` went wrong; "" if that is unknown. Frees `state`, which resulted from it."""
        # Processes would have to repeat steps together, and one that fails alone would hang all.
        if self._diagnosis is None or self._first is None or jax.process_count() > 1:
            return ""
        jax.tree.map(lambda x: x.delete(), state)
        self._checkpoints.wait()
        state, _ = self.newest(self._first)
        first = int(jax.device_get(state.step))
        if self._first_step is None or first < self._first_step:
            return ""  # a checkpoint was lost meanwhile, and what was before it is not known here
        tqdm.write(f"repeating steps {first + 1} to {step} to see why", file=sys.stderr)
        for done in range(first, step - 1):
            state, _ = self._step(state, put_batch(next(self._batches), self._mesh))
            if done + 1 in self.scales:
                scale = scale_like(state.lr_scale, self.scales[done + 1])
                state = dataclasses.replace(state, lr_scale=scale)
        batch = next(self._batches)
        before = jax.device_get(state.params)  # since the step takes its state
        metrics = jax.device_get(self._step(state, put_batch(batch, self._mesh))[1])
        if np.isfinite(jax.tree.leaves(metrics)).all():
            return (
                f"but step {step}, repeated from the state of step {first}, has finite metrics, so "
                "the machine did not compute the same twice: look whether its programs may (sums "
                "of a GPU may come in any order), or check its memory and devices"
            )
        return self._diagnosis.of_step(before, batch, step - 1)
