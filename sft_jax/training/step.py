"""The training step: one pure function, and the ways to compile it.

The gradient of a shard of the batch is computed device by device (`shard_map`), so that no
activation can cross devices; the sums of gradients and metrics are the only communication, beside
the parameter gathers of an `fsdp` axis. The update runs on the sharded state.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from sft_jax.config import AugmentConfig
from sft_jax.training.augment import augment
from sft_jax.training.losses import cross_entropy
from sft_jax.training.optimizer import Schedule
from sft_jax.training.sharding import AXES, BATCH, parameter_shardings
from sft_jax.training.state import TrainState
from sft_jax.types import Batch

# (params, inputs, mask, keys or None) -> output with `logits` and `pooled`
ApplyFn = Callable[[Any, dict, dict, Any], Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What the step needs beside state and batch.

    Attributes:
        apply: the model, as a pure function.
        optimizer: its transformation of gradients.
        schedule: learning rate by step, for the record only.
        augmentation: applied inside the step.
        label_smoothing: of the training loss.
        accumulate: micro-batches.
        seed: of augmentation and dropout.
    """

    apply: ApplyFn
    optimizer: optax.GradientTransformation
    schedule: Schedule
    augmentation: AugmentConfig
    label_smoothing: float
    accumulate: int
    seed: int


def sample_keys(seed: int, step: jax.Array, stream: str, positions: jax.Array) -> Key[Array, " b"]:
    """Keys by seed, step, stream name and position in the global batch; none is carried."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    key = jax.random.fold_in(key, zlib.crc32(stream.encode()))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def loss_and_sums(params: Any, batch: Batch, keys: Any, config: StepConfig):
    """Summed weighted loss of a micro-batch and `{metric: sum}` over its real samples.

    The metric `loss` is without label smoothing, so that it compares with validation.
    """
    inputs = augment(batch["inputs"], batch["mask"], _stream(keys, "augment"), config.augmentation)
    logits = config.apply(params, inputs, batch["mask"], _stream(keys, "dropout")).logits
    weight, label = batch["weight"], batch["label"]
    loss = jnp.sum(weight * cross_entropy(logits, label, config.label_smoothing))
    correct = jnp.sum(weight * (logits.argmax(axis=-1) == label))
    plain = jnp.sum(weight * cross_entropy(logits, label))
    return loss, {"loss": plain, "top1": correct, "count": weight.sum()}


def _stream(keys, name):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))


def shard_gradients(
    params: Any, step: jax.Array, batch: Batch, *, config: StepConfig, axes: Sequence[str] = ()
) -> tuple[Any, Metrics]:
    """Gradient of the mean loss over the global batch, from this device's rows of it.

    Args:
        params: replicated.
        step: optimizer steps taken so far.
        batch: rows of this device, `[b / devices, ...]`.
        config: of the step.
        axes: mapped axis names to sum over; none on a single device.

    Returns:
        The gradient and `{metric: sum, count}`, equal on all devices.
    """
    rows = batch["label"].shape[0]
    first = jax.lax.axis_index(tuple(axes)) * rows if axes else 0
    keys = sample_keys(config.seed, step, "train", first + jnp.arange(rows))
    gradient = jax.grad(functools.partial(loss_and_sums, config=config), has_aux=True)
    if config.accumulate == 1:
        sums = gradient(params, batch, keys)
    else:
        # Micro-batch i takes every accumulate-th row from the i-th on.
        micro = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, config.accumulate, *x.shape[1:]), 1, 0),
            (batch, keys),
        )
        zeros = jax.tree.map(
            jnp.zeros_like, jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro))
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        sums = jax.lax.scan(add, zeros, micro)[0]
    grads, metrics = jax.lax.psum(sums, tuple(axes)) if axes else sums
    return jax.tree.map(lambda g: g / jnp.maximum(metrics["count"], 1.0), grads), metrics


def apply_gradients(
    state: TrainState, grads: Any, metrics: Metrics, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """One optimizer update; adds the gradient's norm and the learning rate to the metrics."""
    updates, opt_state = config.optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.lr_scale, updates)
    metrics = {
        **metrics,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": config.schedule(state.step) * state.lr_scale,
    }
    state = state.replace(
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
    gradients = jax.shard_map(
        functools.partial(shard_gradients, config=config, axes=AXES),
        mesh=mesh,
        in_specs=(replicated, replicated, BATCH),
        out_specs=(replicated, replicated),
        check_vma=False,  # scans inside the model start from unsharded zeros
    )

    def step(state, batch):
        grads, metrics = gradients(state.params, state.step, batch)
        return apply_gradients(state, grads, metrics, config=config)

    shardings = parameter_shardings(abstract_state, mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, replicated)),
        donate_argnums=0,
    )


def eval_outputs(params: Any, batch: Batch, *, apply: ApplyFn) -> dict[str, Any]:
    """Loss `[b]`, probabilities `[b, c]` and the pools' choice of every row, without randomness.

    Ids and labels are handed through, so that rows stay together however devices are ordered.
    """
    output = apply(params, batch["inputs"], batch["mask"], None)
    kept = {
        name: {"indices": pooled.indices, "saliency": pooled.saliency}
        for name, pooled in output.pooled.items()
        if pooled.indices is not None
    }
    return {
        "id": batch["id"],
        "label": batch["label"],
        "loss": cross_entropy(output.logits, batch["label"]),
        "probabilities": jax.nn.softmax(output.logits),
        "kept": kept,
    }


def compile_eval_step(apply: ApplyFn, mesh: Mesh) -> Any:
    """`jax.jit` of `eval_outputs` over a mesh: `(params, batch) -> outputs`, rows kept in place."""
    outputs = jax.shard_map(
        functools.partial(eval_outputs, apply=apply),
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=BATCH,
        check_vma=False,
    )
    return jax.jit(outputs, out_shardings=NamedSharding(mesh, BATCH))
