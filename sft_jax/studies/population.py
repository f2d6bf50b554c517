"""Many runs of one shape, trained together: the step of one run, mapped over all of them.

The runs of a population share the compiled program, and differ in their seed, the fold of the data
they see, and the order they see it in. Letters: `r` runs, `g` folds, `n` records of a split.

A run takes the very steps it would take alone: the same keys, and the same rows in the same order.
Devices share the runs among them, each with a copy of the data, so that none waits for another.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from sft_jax.training.state import TrainState
from sft_jax.training.step import Metrics, StepConfig, train_step
from sft_jax.types import Batch, Leaf

RUNS = PartitionSpec("runs")
_EVERYWHERE = PartitionSpec()


@flax.struct.dataclass
class Members:
    """Who the runs are.

    Attributes:
        seed: `[r]` of each run.
        fold: `[r]` position of its data in the stacked splits.
    """

    seed: Leaf
    fold: Leaf


def stack_folds(folds: Sequence[Batch]) -> Batch:
    """One split of every fold as one batch `[g, n, ...]`; short ones are padded with weight 0."""
    size = max(len(fold["weight"]) for fold in folds)

    def stack(*leaves):
        padded = [np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in leaves]
        return np.stack(padded)

    return jax.tree.map(stack, *folds)


def take_rows(split: Batch, fold: Int[Array, ""], rows: Int[Array, " b"]) -> Batch:
    """The batch of `rows` of a fold; a row of -1 is padding, as `collate` pads.

    Args:
        split: of `stack_folds`.
        fold: which one.
        rows: positions in it.
    """
    real = rows >= 0
    batch = jax.tree.map(lambda x: x[fold, jnp.maximum(rows, 0)], split)

    def blank(x):
        return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

    taken: Batch = jax.tree.map(blank, batch)
    return {**taken, "id": jnp.where(real, batch["id"], -1)}


@dataclasses.dataclass(frozen=True)
class Population:
    """Compiled functions of a population.

    Attributes:
        mesh: of one axis, `runs`.
        create: `(members) -> states [r, ...]`.
        step: `(states, members, data, rows [r, b]) -> (states, metrics [r])`; states are donated.
        logits: `(params, members, data, rows [r, s, b]) -> [r, s, b, c]`, batch after batch.
        keep: `(kept, params, better [r]) -> kept`, with the parameters of runs that got better.
    """

    mesh: Mesh
    create: Callable[[Members], TrainState]
    step: Callable[[TrainState, Members, Batch, Array], tuple[TrainState, Metrics]]
    logits: Callable[[Any, Members, Batch, Array], Array]
    keep: Callable[[Any, Any, Array], Any]

    @classmethod
    def of(
        cls,
        config: StepConfig,
        init: Callable[[Any], TrainState],
        devices: Sequence[jax.Device] | None = None,
        vectorized: bool | None = None,
    ) -> "Population":
        """Compiles, at the first call of each, what one run does.

        Args:
            config: of the step; its seed is that of each member instead.
            init: the first state of a seed, which may be traced.
            devices: to share the runs; all of them where left out.
            vectorized: whether the runs of a device are one batched computation or follow each
                other. Where left out they follow each other on CPUs, where products with an axis
                of runs in front are slower than one after the other.
        """
        devices = jax.devices() if devices is None else list(devices)
        mesh = jax.make_mesh(
            (len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices
        )

        def create(member):
            return init(member.seed)

        def step(state, member, rows, data):
            own = dataclasses.replace(config, seed=member.seed)
            return train_step(state, take_rows(data, member.fold, rows), config=own)

        def logits(params, member, rows, data):
            def one_batch(rows):
                batch = take_rows(data, member.fold, rows)
                return config.apply(params, batch["inputs"], batch["mask"], None).logits

            return jax.lax.map(one_batch, rows)

        def keep(kept, params, better):
            return jax.tree.map(lambda old, new: jnp.where(better, new, old), kept, params)

        if vectorized is None:
            vectorized = devices[0].platform != "cpu"
        each = functools.partial(_over_runs, mesh, vectorized)
        steps, all_logits = each(step, 3), each(logits, 3)
        return cls(
            mesh=mesh,
            create=jax.jit(each(create, 1)),
            step=jax.jit(
                lambda states, members, data, rows: steps(states, members, rows, data),
                donate_argnums=0,
            ),
            logits=jax.jit(
                lambda params, members, data, rows: all_logits(params, members, rows, data)
            ),
            keep=jax.jit(each(keep, 3), donate_argnums=0),
        )

    def put(self, tree: Any, *, runs: bool) -> Any:
        """Arrays on the devices: shared out by runs, or whole on each."""
        return jax.device_put(tree, NamedSharding(self.mesh, RUNS if runs else _EVERYWHERE))


def _over_runs(mesh: Mesh, vectorized: bool, function: Callable, mapped: int) -> Callable:
    """`function` of one run for all of them; its first `mapped` arguments have an axis of runs."""

    def on_device(*arguments):
        own, shared = arguments[:mapped], arguments[mapped:]
        if vectorized:
            return jax.vmap(lambda *run: function(*run, *shared))(*own)
        return jax.lax.map(lambda run: function(*run, *shared), own)

    def everywhere(*arguments):
        specs = tuple(RUNS if i < mapped else _EVERYWHERE for i in range(len(arguments)))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=RUNS, check_vma=False)(
            *arguments
        )

    return everywhere
