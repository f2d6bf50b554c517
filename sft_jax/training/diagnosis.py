"""Causes of non-finite numbers in training: parameters, samples, and the first layer.

This code runs only after a number has turned out not to be finite, so that the compiled step pays
nothing for it. Samples are checked one by one, in a program of one row on one device.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.optimizer import Plateau
from sft_jax.training.sharding import path_name, put_batch
from sft_jax.training.state import Progress, TrainState
from sft_jax.training.step import StepConfig, loss_and_sums, model_inputs
from sft_jax.types import Batch

MOST_NAMED = 10  # samples or parameters that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Explanations of non-finite numbers; each returns a clause for an error message.

    Attributes:
        of_step: Function of a training step: `(params, batch, previous steps) -> cause`.
        of_validation: Function of a validation: `params -> cause`.
    """

    of_step: Callable[[Any, Batch, int], str]
    of_validation: Callable[[Any], str]


def scale_like(scale: jax.Array, plateau: Plateau) -> jax.Array:
    """The factor of the plateau rule, with the sharding of `scale`."""
    return jax.device_put(np.float32(plateau.scale), scale.sharding)


class Replay:
    """Repeats recent steps to find out why one of them went wrong.

    When a metric turns out not to be finite, the state has moved on, and keeping a copy of every
    state would cost too much. But steps are reproducible: those since the newest checkpoint, which
    precedes the fault, are repeated with the same data.

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
        """Stores parts of the loop, see `loop.Parts`, and the abstract state."""
        self._step, self._batches, self._checkpoints = step, batches, checkpoints
        self._mesh, self._first, self._diagnosis = mesh, first, diagnosis
        self._abstract = abstract
        self._begin = Progress(data=batches.get_state())
        self._first_step: int | None = None
        self.scales: dict[int, Plateau] = {}

    def newest(self, first: Callable[[], TrainState]) -> tuple[TrainState, Progress]:
        """The newest checkpoint, or else the first state; rewinds the batches to it."""
        resumed = self._checkpoints.resume(self._abstract)
        state, progress = (None, self._begin) if resumed is None else resumed
        self._batches.set_state(progress.data)
        state = first() if state is None else state
        if self._first_step is None:
            self._first_step = int(jax.device_get(state.step))
        return state, progress

    def explain(self, state: TrainState, step: int) -> str:
        """The cause of a fault in `step`, or "" if unknown; frees `state`, the step's result."""
        # Several processes would have to repeat steps together, and one failure would hang all.
        if self._diagnosis is None or self._first is None or jax.process_count() > 1:
            return ""
        jax.tree.map(lambda x: x.delete(), state)
        self._checkpoints.wait()
        state, _ = self.newest(self._first)
        first = int(jax.device_get(state.step))
        if self._first_step is None or first < self._first_step:
            return ""  # a checkpoint was lost, and the changes before it are not known
        tqdm.write(f"repeating steps {first + 1} to {step} to find the cause", file=sys.stderr)
        for done in range(first, step - 1):
            state, _ = self._step(state, put_batch(next(self._batches), self._mesh))
            if done + 1 in self.scales:
                scale = scale_like(state.lr_scale, self.scales[done + 1])
                state = dataclasses.replace(state, lr_scale=scale)
        batch = next(self._batches)
        params = jax.device_get(state.params)  # copied, since the step donates its state
        metrics = jax.device_get(self._step(state, put_batch(batch, self._mesh))[1])
        if np.isfinite(jax.tree.leaves(metrics)).all():
            return (
                f"but step {step}, repeated from the state of step {first}, has finite metrics, so "
                "the computation is not reproducible: check whether that is expected (GPUs may sum "
                "in any order), or check memory and devices for faults"
            )
        return self._diagnosis.of_step(params, batch, step - 1)


def explain_step(
    params: Any,
    batch: Batch,
    step: int,
    *,
    model: nn.Module,
    config: StepConfig,
    name: Callable[[int], str],
) -> str:
    """Explains a training step with its random draws, but without its mixup.

    Args:
        params: Parameters before the step.
        batch: All rows of its batch, on the host.
        step: Optimizer steps taken before it.
        model: Model that `config` applies.
        config: Configuration of the step.
        name: Function from the position of a record in its split to its id.
    """
    if broken := not_finite(params):
        return f"the parameters were not finite before it: {_listed(broken)}"
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    config = dataclasses.replace(config, mixup=None, accumulate=1)
    results = {}
    for row in np.flatnonzero(batch["weight"]).tolist():
        sample = (_row(batch, row), np.full(1, row), np.int32(step))
        results[row] = jax.device_get(_loss_and_gradients(params, *sample, config=config))
    culprits = [row for row, numbers in results.items() if not_finite(numbers)]
    if not culprits:
        return _no_culprit([largest for _, largest in results.values()])
    row, (loss, largest) = culprits[0], results[culprits[0]]
    inputs = _inputs(_row(batch, row), np.full(1, row), np.int32(step), config=config)
    samples = _samples(batch, culprits, name)
    if layer := first_layer(model, params, *inputs):
        return f"{samples}; the first layer whose output is not finite is {layer}"
    if not np.isfinite(loss):
        return f"{samples}; every layer's output is finite, the loss of these outputs is not"
    return (
        f"{samples}; every layer's output is finite, the gradient of these parameters is not: "
        f"{_listed(not_finite(largest))}"
    )


def explain_rows(
    params: Any,
    batch: Batch,
    *,
    model: nn.Module,
    name: Callable[[int], str],
    count: int | None = None,
) -> str:
    """Explains rows of an evaluation that are not finite.

    Args:
        params: Parameters of the model.
        batch: Rows whose loss is not finite; at most `MOST_NAMED` of them are checked.
        model: Model that was evaluated.
        name: See `explain_step`.
        count: Number of all such rows if `batch` holds only some.
    """
    if broken := not_finite(params):
        return f"the parameters are not finite: {_listed(broken)}"
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    samples = _samples(batch, range(len(batch["id"])), name, count)
    first = _row(batch, 0)
    layer = first_layer(model, params, first["inputs"], first["mask"], None)
    if layer:
        return f"{samples}; the first layer whose output is not finite is {layer}"
    return f"{samples}; the loss of its finite outputs is not finite"


def not_finite(tree: Any) -> list[str]:
    """Paths of the floating-point leaves that contain NaN or infinity."""
    return [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all()
    ]


def first_layer(
    model: nn.Module, params: Any, inputs: dict[str, Any], mask: dict[str, Any], keys: Any
) -> str | None:
    """Path of the first module whose output is not finite, in order of computation.

    Layers of a stack are counted from 0. If all modules are fine but the model's output is not, the
    path is `the model`.
    """
    order: dict[tuple[str, ...], int] = {}

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        name = context.method_name
        leaves = [x for x in jax.tree.leaves(out) if hasattr(x, "dtype")]
        floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
        if name != "setup" and floats:
            finite = jnp.stack([jnp.isfinite(x).all() for x in floats]).all()
            context.module.sow("intermediates", name, finite)
            order.setdefault((*context.module.path, name), len(order))
        return out

    def run(params, inputs, mask, keys):
        with nn.intercept_methods(watch):
            variables = {"params": params}
            return model.apply(variables, inputs, mask, keys, mutable=["intermediates"])[1]

    seen = jax.device_get(jax.jit(run)(params, inputs, mask, keys))["intermediates"]
    # Order of computation: position of the outermost module, layer of its stack, position there.
    places: dict[str, int] = {}
    bad = []
    for path, place in order.items():
        calls = functools.reduce(lambda tree, part: tree[part], path, seen)
        places.setdefault(path[0], place)
        for finite in calls:
            layers = np.flatnonzero(~np.asarray(finite))
            if layers.size:
                layer = int(layers[0]) if np.ndim(finite) else None
                when = (places[path[0]], layer is None and len(path) == 2, layer or 0, place)
                bad.append((when, path, layer))
    if not bad:
        return None
    _, (*modules, method), layer = min(bad)
    module = "/".join(modules) or "the model"
    module += "" if method == "__call__" else f".{method}"
    return module if layer is None else f"{module} (layer {layer})"


_inputs = jax.jit(model_inputs, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def _loss_and_gradients(params, batch, positions, step, *, config):
    """Loss of one row, and the largest gradient entry of each parameter, NaN if there is one."""
    value = jax.value_and_grad(functools.partial(loss_and_sums, config=config), has_aux=True)
    (loss, _), grads = value(params, batch, positions, step)
    return loss, jax.tree.map(lambda g: jnp.abs(g).max(), grads)


def _row(batch: Batch, row: int) -> Batch:
    return jax.tree.map(lambda x: x[row : row + 1], batch)


def _samples(
    batch: Batch, rows: Sequence[int], name: Callable[[int], str], count: int | None = None
) -> str:
    """Ids of samples, with the modalities whose inputs are not finite."""
    names = []
    for row in rows[:MOST_NAMED]:
        broken = [
            modality
            for modality, x in batch["inputs"].items()
            if not np.isfinite(x[row][batch["mask"][modality][row]]).all()
        ]
        inputs = f" (inputs of {', '.join(broken)} are not finite)" if broken else ""
        names.append(f"{name(int(batch['id'][row]))!r}{inputs}")
    unnamed = (count or len(rows)) - len(names)
    left = f" and {unnamed} more" if unnamed else ""
    return f"taken alone, not finite: sample {', '.join(names)}{left}"


def _no_culprit(gradients: list[Any]) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda *x: max(x), *gradients))
    path, size = max(leaves, key=lambda leaf: leaf[1])
    return (
        "each sample taken alone, without mixup, has a finite loss and finite gradients, the "
        f"largest {size:.1e}, of {path_name(path)}"
    )


def _listed(names: Sequence[str]) -> str:
    left = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{left}"
