"""The training step: one pure function, and its compilation over a mesh.

Each device computes the gradient of its rows of the batch inside `shard_map`, so no activation
crosses devices. The only collectives are one sum of gradients and metrics and, with an `fsdp` axis,
one gather per split parameter, whose gradient is reduce-scattered. The update runs on the sharded
state.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
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

# (params, inputs, mask, keys or None[, mixup]) -> output with `logits` and `pooled`.
ApplyFn = Callable[..., Any]
# Metrics of a batch: `{name: (sum, count)}`.
Metrics = dict[str, Sum]
Keys = Key[Array, " b"]
# (path of a parameter, this device's shard of it) -> the full parameter.
Gather = Callable[[str, jax.Array], jax.Array]


@contextlib.contextmanager
def gather_before(params: Any, gather: Gather) -> Iterator[Any]:
    """Yields the full parameters, for a model that does not gather them itself."""
    yield jax.tree_util.tree_map_with_path(lambda path, x: gather(path_name(path), x), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Static configuration of the training step.

    Attributes:
        apply: Model as a pure function.
        task: Task that defines loss and metrics.
        optimizer: Gradient transformation.
        schedule: Learning rate by step, for the log only.
        augmentation: Augmentation inside the step.
        accumulate: Number of micro-batches.
        seed: Seed for augmentation, dropout and mixup.
        mixup: Mixup plan, with which `apply` takes a `Mixup` as its last argument; None disables
            mixup.
        gathering: Context manager that `apply` is traced in if parameters are split; it yields the
            parameters to pass to `apply`.
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
    """Weighted sum of the losses of a micro-batch, with its divisor and the task's metrics.

    The metrics use each sample's own target, as validation does, so under mixup they score the
    blended samples. `split` is described in `shard_gradients`.

    Returns:
        The summed loss, and `count` (its divisor), `samples` (number of real rows) and `metrics`
        (`{name: (sum, count)}`).
    """
    if split:
        with config.gathering(params, functools.partial(_gather, split)) as full_params:
            return loss_and_sums(full_params, batch, positions, step, config=config)
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
    samples = jnp.sum(batch["id"] >= 0, dtype=jnp.float32)
    totals = {"count": jnp.sum(weight * counts), "samples": samples, "metrics": metrics}
    return jnp.sum(weight * losses), totals


def mixed_loss(
    task: Task, outputs: jax.Array, target: jax.Array, mixup: Mixup
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss and count of blended samples, interpolated between their own and their partner's target.

    Args:
        task: Task that defines the loss.
        outputs: Outputs of the model for the blended samples `[b, o]`.
        target: Target of each sample `[b, ...]`.
        mixup: Mixup that blended the samples.
    """
    share = mixup.label_share
    loss, count = task.loss(outputs, target)
    partner_loss, partner_count = task.loss(outputs, target[mixup.partner])
    return (
        share * loss + (1 - share) * partner_loss,
        share * count + (1 - share) * partner_count,
    )


def model_inputs(
    batch: Batch, positions: Int[Array, " b"], step: jax.Array, *, config: StepConfig
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], Keys]:
    """Augmented inputs, masks, and one dropout key per sample."""
    keys = sample_keys(config.seed, step, "train", positions)
    augment_keys = stream_keys(keys, "augment")
    inputs = augment(batch["inputs"], batch["mask"], augment_keys, config.augmentation)
    inputs, mask = hide(inputs, batch["mask"], augment_keys, config.augmentation)
    return inputs, mask, stream_keys(keys, "dropout")


def _gather(split: Mapping[str, int], path: str, x: jax.Array) -> jax.Array:
    """Gathers a split parameter along `fsdp`; its gradient is reduce-scattered."""
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
        params: Parameters, replicated except for those in `split`.
        step: Optimizer steps taken so far.
        batch: Rows of this device `[b / devices, ...]`.
        config: Configuration of the step.
        axes: Mapped axis names to sum over; empty on a single device.
        split: Axis, counted from the end, along which `fsdp` splits a parameter, by its path.

    Returns:
        The gradient, split like `params`, and the metrics, equal on all devices. The metric
        `samples` is the number of real samples.
    """
    rows = batch["weight"].shape[0]
    first = jax.lax.axis_index(tuple(axes)) * rows if axes else 0
    positions = first + jnp.arange(rows)
    loss = functools.partial(loss_and_sums, step=step, config=config, split=split)
    gradient = jax.grad(loss, has_aux=True)
    if config.accumulate == 1:
        sums = gradient(params, batch, positions)
    else:
        # Micro-batch i takes every accumulate-th row (or mixup group of rows), from the i-th on.
        size = 1 if config.mixup is None else config.mixup.group_size

        def split_rows(x):
            x = x.reshape(-1, config.accumulate, size, *x.shape[1:])
            x = jnp.moveaxis(x, 1, 0)
            return x.reshape(config.accumulate, -1, *x.shape[3:])

        micro = jax.tree.map(split_rows, (batch, positions))
        zeros = jax.tree.map(
            jnp.zeros_like, jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro))
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        sums = jax.lax.scan(add, zeros, micro)[0]
    grads, totals = _sum_over(axes, sums, split or {}) if axes else sums
    count = jnp.where(totals["count"] > 0, totals["count"], 1.0)
    metrics = {**totals["metrics"], "samples": (totals["samples"], jnp.ones((), jnp.float32))}
    return jax.tree.map(lambda g: g / count, grads), metrics


def _sum_over(axes: Sequence[str], sums: Any, split: Mapping[str, int]) -> Any:
    """Sums over all devices; gradients of split parameters are already summed along `fsdp`."""
    grads, totals = sums
    leaves, structure = jax.tree_util.tree_flatten_with_path(grads)
    by_path = {path_name(path): x for path, x in leaves}
    replicated = {name: x for name, x in by_path.items() if name not in split}
    # All metrics travel as one vector: a collective for each scalar would cost its latency.
    vector, restore = ravel_pytree(totals)
    replicated, vector = jax.lax.psum((replicated, vector), tuple(axes))
    other_axes = tuple(axis for axis in axes if axis != "fsdp" and jax.lax.axis_size(axis) > 1)
    shards = {name: by_path[name] for name in split}
    if other_axes:
        shards = jax.lax.psum(shards, other_axes)
    summed = {**replicated, **shards}
    grads = jax.tree.unflatten(structure, [summed[path_name(path)] for path, _ in leaves])
    return grads, restore(vector)


@standard_promotion
def apply_gradients(
    state: TrainState, grads: Any, metrics: Metrics, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """One optimizer update; adds the gradient norm and the learning rate to the metrics."""
    updates, opt_state = config.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.lr_scale, updates)
    one = jnp.ones((), jnp.float32)
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
    """The full step on the rows of one device; also runs under `jax.pmap(axis_name=axes[0])`."""
    grads, metrics = shard_gradients(state.params, state.step, batch, config=config, axes=axes)
    return apply_gradients(state, grads, metrics, config=config)


def compile_train_step(config: StepConfig, mesh: Mesh, abstract_state: TrainState) -> Any:
    """Jits the step over a mesh: `(state, batch) -> (state, metrics)`; the state is donated."""
    replicated = PartitionSpec()
    shardings = parameter_shardings(abstract_state, mesh)
    param_specs = jax.tree.map(lambda sharding: sharding.spec, shardings.params)
    split = split_axes(abstract_state.params, mesh)
    gradients = jax.shard_map(
        functools.partial(shard_gradients, config=config, axes=AXES, split=split),
        mesh=mesh,
        in_specs=(param_specs, replicated, BATCH),
        out_specs=(param_specs, replicated),
        check_vma=False,  # scans inside the model start from replicated zeros
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
