"""What made a number of training not finite: parameters, samples, and the first layer.

All of this runs when a number has turned out not to be finite, and never before, so that the
compiled step pays nothing for it. Samples are taken one by one, in a program of one row, on one
device.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.training.sharding import path_name
from sft_jax.training.step import StepConfig, loss_and_sums, model_inputs
from sft_jax.types import Batch

MOST_NAMED = 10  # samples or parameters that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the loop asks when a number is not finite; each answer is a clause for its message.

    Attributes:
        of_step: `(params, batch, steps before it) -> cause` of a training step.
        of_validation: `params -> cause`.
    """

    of_step: Callable[[Any, Batch, int], str]
    of_validation: Callable[[Any], str]


def explain_step(
    params: Any,
    batch: Batch,
    step: int,
    *,
    model: nn.Module,
    config: StepConfig,
    name: Callable[[int], str],
) -> str:
    """Why a training step went wrong, with the draws of that step, but without its mixup.

    Args:
        params: before the step.
        batch: of the step, all rows, on the host.
        step: optimizer steps taken before it.
        model: that `config` applies.
        config: of the step.
        name: from the position of a record in its split to its id.
    """
    if broken := not_finite(params):
        return f"the parameters were not finite before it: {_listed(broken)}"
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    config = dataclasses.replace(config, mixup=None, accumulate=1)
    found = {}
    for row in np.flatnonzero(batch["weight"]).tolist():
        own = (_row(batch, row), np.full(1, row), np.int32(step))
        found[row] = jax.device_get(_alone(params, *own, config=config))
    culprits = [row for row, numbers in found.items() if not_finite(numbers)]
    if not culprits:
        return _no_culprit([largest for _, largest in found.values()])
    row, (loss, largest) = culprits[0], found[culprits[0]]
    given = _inputs(_row(batch, row), np.full(1, row), np.int32(step), config=config)
    says = _samples(batch, culprits, name)
    if layer := first_layer(model, params, *given):
        return f"{says}; the first layer whose output is not finite is {layer}"
    if not np.isfinite(loss):
        return f"{says}; every layer's output is finite, the loss of these logits is not"
    return (
        f"{says}; every layer's output is finite, the gradient of these parameters is not: "
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
    """Why rows of an evaluation went wrong; all of `batch` are culprits.

    Args:
        params: of the evaluation.
        batch: rows whose loss is not finite, at most `MOST_NAMED` of them are looked at.
        model: that was evaluated.
        name: see `explain_step`.
        count: of all such rows, where `batch` holds only some.
    """
    if broken := not_finite(params):
        return f"the parameters are not finite: {_listed(broken)}"
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    says = _samples(batch, range(len(batch["id"])), name, count)
    first = _row(batch, 0)
    layer = first_layer(model, params, first["inputs"], first["mask"], None)
    found = f"the first layer whose output is not finite is {layer}"
    return f"{says}; {found if layer else 'the loss of its finite logits is not finite'}"


def not_finite(tree: Any) -> list[str]:
    """Paths of the floating leaves that hold a NaN or an infinity."""
    return [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all()
    ]


def first_layer(
    model: nn.Module, params: Any, inputs: dict[str, Any], mask: dict[str, Any], keys: Any
) -> str | None:
    """Path of the first module whose output is not finite, in the order of computation.

    Layers of a stack are counted from 0. The model itself, where all its modules are fine, is
    called `the model`.
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
    # By time of computation: place of the outermost module, layer of its stack, place in the layer.
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
    where = "/".join(modules) or "the model"
    where += "" if method == "__call__" else f".{method}"
    return where if layer is None else f"{where} (layer {layer})"


_inputs = jax.jit(model_inputs, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def _alone(params, batch, positions, step, *, config):
    """Loss of one row, and the largest entry of each parameter's gradient, NaN if there is one."""
    value = jax.value_and_grad(functools.partial(loss_and_sums, config=config), has_aux=True)
    (loss, _), grads = value(params, batch, positions, step)
    return loss, jax.tree.map(lambda g: jnp.abs(g).max(), grads)


def _row(batch: Batch, row: int) -> Batch:
    return jax.tree.map(lambda x: x[row : row + 1], batch)


def _samples(
    batch: Batch, rows: Sequence[int], name: Callable[[int], str], count: int | None = None
) -> str:
    """The culprits by their ids, with the modalities whose inputs are the cause."""
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
