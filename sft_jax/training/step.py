"""The training step: one pure function, and the ways to compile it.

The gradient of a shard of the batch is computed device by device (`shard_map`), so that no
activation can cross devices; the sums of gradients and metrics are the only communication, beside
the parameter gathers of an `fsdp` axis. The update runs on the sharded state.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from sft_jax.config import AugmentConfig
from sft_jax.training.augment import augment
from sft_jax.training.losses import cross_entropy, mixed_cross_entropy
from sft_jax.training.mixing import MixupPlan, draw_mixup
from sft_jax.training.optimizer import Schedule
from sft_jax.training.randomness import sample_keys, stream_keys
from sft_jax.training.sharding import AXES, BATCH, parameter_shardings
from sft_jax.training.state import TrainState
from sft_jax.types import Batch

# (params, inputs, mask, keys or None[, mixup]) -> output with `logits` and `pooled`
ApplyFn = Callable[..., Any]
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
        seed: of augmentation, dropout and mixup.
        mixup: None without; `apply` takes a `Mixup` as its last argument otherwise.
    """

    apply: ApplyFn
    optimizer: optax.GradientTransformation
    schedule: Schedule
    augmentation: AugmentConfig
    label_smoothing: float
    accumulate: int
    seed: int
    mixup: MixupPlan | None = None


def loss_and_sums(
    params: Any,
    batch: Batch,
    positions: Int[Array, " b"],
    step: jax.Array,
    *,
    config: StepConfig,
):
    """Summed weighted loss of a micro-batch and `{metric: sum}` over its real samples.

    The metrics `loss` and `top1` compare with a sample's own label, without label smoothing, so
    that they compare with validation; under mixup they judge the blended samples.
    """
    weight, label = batch["weight"], batch["label"]
    keys = sample_keys(config.seed, step, "train", positions)
    inputs = augment(
        batch["inputs"], batch["mask"], stream_keys(keys, "augment"), config.augmentation
    )
    model_keys, smoothing = stream_keys(keys, "dropout"), config.label_smoothing
    if config.mixup is None:
        logits = config.apply(params, inputs, batch["mask"], model_keys).logits
        losses = cross_entropy(logits, label, smoothing)
    else:
        mixup = draw_mixup(config.mixup, config.seed, step, positions, weight)
        logits = config.apply(params, inputs, batch["mask"], model_keys, mixup).logits
        losses = mixed_cross_entropy(
            logits, label, label[mixup.partner], mixup.label_share, smoothing
        )
    correct = jnp.sum(weight * (logits.argmax(axis=-1) == label))
    plain = jnp.sum(weight * cross_entropy(logits, label))
    return jnp.sum(weight * losses), {"loss": plain, "top1": correct, "count": weight.sum()}


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
    positions = first + jnp.arange(rows)
    gradient = jax.grad(functools.partial(loss_and_sums, step=step, config=config), has_aux=True)
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
    """Loss `[b]`, logits, probabilities `[b, c]` and the pools' choice of every row; no randomness.

    Ids and labels are handed through, so that rows stay together however devices are ordered.
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
        "label": batch["label"],
        "loss": cross_entropy(output.logits, batch["label"]),
        "logits": output.logits,
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
