"""The training step: one pure function, and the ways to compile it.

The gradient of a shard of the batch is computed device by device (`shard_map`), so that no
activation can cross devices; the sums of gradients and metrics are the only communication, beside
the parameter gathers of an `fsdp` axis, whose gradients are summed and split in one go. The update
runs on the sharded state.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from sft_jax.config.run import AugmentConfig
from sft_jax.models.mixup import Mixup
from sft_jax.tasks.base import Sum, Task
from sft_jax.training.augment import augment, hide
from sft_jax.training.mixing import MixupPlan, draw_mixup
from sft_jax.training.optimizer import LearningRate
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.randomness import Seed, sample_keys, stream_keys
from sft_jax.training.sharding import AXES, BATCH, parameter_shardings, path_name, split_axes
from sft_jax.training.state import TrainState
from sft_jax.types import Batch

# (params, inputs, mask, keys or None[, mixup]) -> output with `logits` and `pooled`
ApplyFn = Callable[..., Any]
# Metrics of a batch: `{name: (sum, count)}`.
Metrics = dict[str, Sum]
Keys = Key[Array, " b"]
# From the path of a parameter and this device's part of it to the whole.
Gather = Callable[[str, jax.Array], jax.Array]


@contextlib.contextmanager
def gather_before(params: Any, gather: Gather) -> Iterator[Any]:
    """Yields all parameters whole, for a model that gathers none itself."""
    yield jax.tree_util.tree_map_with_path(lambda path, x: gather(path_name(path), x), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What the step needs beside state and batch.

    Attributes:
        apply: Model as a pure function.
        task: Source of loss and metrics.
        optimizer: Transformation of gradients.
        schedule: Learning rate by step, for the record only.
        augmentation: Augmentation inside the step.
        accumulate: Number of micro-batches.
        seed: Seed for augmentation, dropout and mixup.
        mixup: None without; `apply` takes a `Mixup` as its last argument otherwise.
        gathering: context in which `apply` is traced where parameters are split, and which yields
            what it is handed of them.
    """

    apply: ApplyFn
    task: Task
    optimizer: optax.GradientTransformation
    schedule: LearningRate
    augmentation: AugmentConfig
    accumulate: int
    seed: Seed
    mixup: MixupPlan | None = None
    gathering: Callable[[Any, Gather], contextlib.AbstractContextManager] = gather_before


def loss_and_sums(
    params: Any,
    batch: Batch,
    positions: Int[Array, " b"],
    step: jax.Array,
    *,
    config: StepConfig,
    split: Mapping[str, int] | None = None,
):
    """Summed weighted loss of a micro-batch, and what it counts for with the task's metrics.

    The metrics compare with a sample's own target, so that they compare with validation; under
    mixup they judge the blended samples. `split` is that of `shard_gradients`.

    Returns:
        The loss, and `count` (its divisor), `samples` (the weights' sum) and `metrics`
        (`{name: (sum, count)}`).
    """
    if split:
        with config.gathering(params, functools.partial(_gather, split)) as whole:
            return loss_and_sums(whole, batch, positions, step, config=config)
    weight, target = batch["weight"], batch["target"]
    inputs, mask, model_keys = model_inputs(batch, positions, step, config=config)
    if config.mixup is None:
        logits = config.apply(params, inputs, mask, model_keys).logits
        losses, counts = config.task.loss(logits, target)
    else:
        mixup = draw_mixup(config.mixup, config.seed, step, positions, weight)
        logits = config.apply(params, inputs, mask, model_keys, mixup).logits
        losses, counts = mixed_loss(config.task, logits, target, mixup)
    metrics = {
        name: (jnp.sum(weight * value), jnp.sum(weight * count))
        for name, (value, count) in config.task.sums(logits, target).items()
    }
    totals = {"count": jnp.sum(weight * counts), "samples": weight.sum(), "metrics": metrics}
    return jnp.sum(weight * losses), totals


def mixed_loss(
    task: Task, outputs: jax.Array, target: jax.Array, mixup: Mixup
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and count of blended samples: `share` of their own target's, the rest of the partner's.

    Args:
        task: Source of the loss.
        outputs: `[b, o]` outputs of the model for the blended samples.
        target: `[b, ...]` target of each sample.
        mixup: How they were blended.
    """
    share = mixup.label_share
    own = task.loss(outputs, target)
    other = task.loss(outputs, target[mixup.partner])
    loss, count = (share * a + (1 - share) * b for a, b in zip(own, other, strict=True))
    return loss, count


def model_inputs(
    batch: Batch, positions: Int[Array, " b"], step: jax.Array, *, config: StepConfig
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Keys]:
    """What the model is given of a micro-batch: augmented inputs, masks, a key a sample."""
    keys = sample_keys(config.seed, step, "train", positions)
    changes = (stream_keys(keys, "augment"), config.augmentation)
    inputs = augment(batch["inputs"], batch["mask"], *changes)
    inputs, mask = hide(inputs, batch["mask"], *changes)
    return inputs, mask, stream_keys(keys, "dropout")


def _gather(split: Mapping[str, int], path: str, x: jax.Array) -> jax.Array:
    """A parameter from the devices along `fsdp`; its gradient is summed and split on return."""
    if path not in split:
        return x
    return jax.lax.all_gather(x, "fsdp", axis=x.ndim + split[path], tiled=True)


@standard_promotion
def shard_gradients(
    params: Any,
    step: jax.Array,
    batch: Batch,
    *,
    config: StepConfig,
    axes: Sequence[str] = (),
    split: Mapping[str, int] | None = None,
) -> tuple[Any, Metrics]:
    """Gradient of the mean loss over the global batch, from this device's rows of it.

    Args:
        params: replicated, but for those in `split`.
        step: optimizer steps taken so far.
        batch: rows of this device, `[b / devices, ...]`.
        config: of the step.
        axes: mapped axis names to sum over; none on a single device.
        split: by path, the axis (from the end) in which the mapped axis `fsdp` splits a parameter.

    Returns:
        The gradient, split as `params`, and the metrics; what is whole is equal on all devices.
        Metric `samples` is the number of real samples.
    """
    rows = batch["weight"].shape[0]
    first = jax.lax.axis_index(tuple(axes)) * rows if axes else 0
    positions = first + jnp.arange(rows)
    loss = functools.partial(loss_and_sums, step=step, config=config, split=split)
    gradient = jax.grad(loss, has_aux=True)
    if config.accumulate == 1:
        sums = gradient(params, batch, positions)
    else:
        # Micro-batch i takes every accumulate-th row (group of rows, under mixup) from the i-th on.
        size = 1 if config.mixup is None else config.mixup.group_size

        def cut(x):
            x = x.reshape(-1, config.accumulate, size, *x.shape[1:])
            x = jnp.moveaxis(x, 1, 0)
            return x.reshape(config.accumulate, -1, *x.shape[3:])

        micro = jax.tree.map(cut, (batch, positions))
        zeros = jax.tree.map(
            jnp.zeros_like, jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro))
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        sums = jax.lax.scan(add, zeros, micro)[0]
    grads, totals = _sum_over(axes, sums, split or {}) if axes else sums
    count = jnp.where(totals["count"] > 0, totals["count"], 1.0)
    metrics = {**totals["metrics"], "samples": (totals["samples"], jnp.ones(()))}
    return jax.tree.map(lambda g: g / count, grads), metrics


def _sum_over(axes: Sequence[str], sums: Any, split: Mapping[str, int]) -> Any:
    """The sums of all devices; gradients of split parameters have been summed along `fsdp`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(sums[0])
    own = {path_name(path): x for path, x in leaves}
    whole = {name: x for name, x in own.items() if name not in split}
    whole, metrics = jax.lax.psum((whole, sums[1]), tuple(axes))
    others = tuple(axis for axis in axes if axis != "fsdp" and jax.lax.axis_size(axis) > 1)
    parts = {name: own[name] for name in split}
    own = {**whole, **(jax.lax.psum(parts, others) if others else parts)}
    return jax.tree.unflatten(structure, [own[path_name(path)] for path, _ in leaves]), metrics


@standard_promotion
def apply_gradients(
    state: TrainState, grads: Any, metrics: Metrics, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """One optimizer update; adds the gradient's norm and the learning rate to the metrics."""
    updates, opt_state = config.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.lr_scale, updates)
    one = jnp.ones(())
    metrics = {
        **metrics,
        "gradient_norm": (optax.tree.norm(grads), one),
        "learning_rate": (config.schedule(state.step) * state.lr_scale, one),
    }
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, metrics


def train_step(
    state: TrainState, batch: Batch, *, config: StepConfig, axes: Sequence[str] = ()
) -> tuple[TrainState, Metrics]:
    """The whole step on one device's rows; as it stands for `jax.pmap(..., axis_name=axes[0])`."""
    grads, metrics = shard_gradients(state.params, state.step, batch, config=config, axes=axes)
    return apply_gradients(state, grads, metrics, config=config)


def compile_train_step(config: StepConfig, mesh: Mesh, abstract_state: TrainState) -> Any:
    """`jax.jit` of the step over a mesh: `(state, batch) -> (state, metrics)`, state donated."""
    replicated = PartitionSpec()
    shardings = parameter_shardings(abstract_state, mesh)
    parts = jax.tree.map(lambda sharding: sharding.spec, shardings.params)
    split = split_axes(abstract_state.params, mesh)
    gradients = jax.shard_map(
        functools.partial(shard_gradients, config=config, axes=AXES, split=split),
        mesh=mesh,
        in_specs=(parts, replicated, BATCH),
        out_specs=(parts, replicated),
        check_vma=False,  # scans inside the model start from unsharded zeros
    )

    def step(state, batch):
        grads, metrics = gradients(state.params, state.step, batch)
        return apply_gradients(state, grads, metrics, config=config)

    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, replicated)),
        donate_argnums=0,
    )


@standard_promotion
def eval_outputs(params: Any, batch: Batch, *, apply: ApplyFn, task: Task) -> dict[str, Any]:
    """Outputs, answers, metrics and the pools' choice of every row; no randomness.

    Ids and targets are handed through, so that rows stay together however devices are ordered.

    Returns:
        `id`, `target`, `outputs [b, o]`, `answers`, `sums` (those of `task.sums`) and `kept`.
    """
    output = apply(params, batch["inputs"], batch["mask"], None)
    kept = {
        name: {"indices": pooled.indices}
        | ({} if pooled.saliency is None else {"saliency": pooled.saliency})
        for name, pooled in output.pooled.items()
        if pooled.indices is not None
    }
    return {
        "id": batch["id"],
        "target": batch["target"],
        "outputs": output.logits,
        "answers": task.answer(output.logits),
        "sums": task.sums(output.logits, batch["target"]),
        "kept": kept,
    }


def compile_eval_step(apply: ApplyFn, task: Task, mesh: Mesh) -> Any:
    """`jax.jit` of `eval_outputs` over a mesh: `(params, batch) -> outputs`, rows kept in place."""
    outputs = jax.shard_map(
        functools.partial(eval_outputs, apply=apply, task=task),
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=BATCH,
        check_vma=False,
    )
    return jax.jit(outputs, out_shardings=NamedSharding(mesh, BATCH))
