"""Populations: runs of one shape that are trained together by mapping the step of a single run.

The runs share the compiled program, and differ in their seed, their fold of the data, and the order
of its records. Letters: `r` runs, `g` folds, `n` records of a split.

Each run takes the same steps as if trained alone: the same keys, and the same rows in the same
order. Runs are distributed over the devices, each with a copy of the data, so no device waits.
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
_REPLICATED = PartitionSpec()


@flax.struct.dataclass
class Members:
    """Seeds and folds of the runs.

    Attributes:
        seed: Seed of each run `[r]`.
        fold: Position of its data in the stacked splits `[r]`.
    """

    seed: Leaf
    fold: Leaf


def stack_folds(folds: Sequence[Batch]) -> Batch:
    """Stacks a split of every fold into a batch `[g, n, ...]`, padded with weight 0."""
    size = max(len(fold["weight"]) for fold in folds)

    def stack(*leaves):
        padded = [np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in leaves]
        return np.stack(padded)

    return jax.tree.map(stack, *folds)


def take_rows(split: Batch, fold: Int[Array, ""], rows: Int[Array, " b"]) -> Batch:
    """Takes a batch of rows from a fold; a position of -1 gives a padding row.

    Args:
        split: Result of `stack_folds`.
        fold: Position of the fold.
        rows: Positions in the fold.
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
        mesh: Mesh with one axis, `runs`.
        create: `(members) -> states [r, ...]`.
        step: `(states, members, rows [r, b], data) -> (states, metrics [r])`; states are donated.
        outputs: `(params, members, rows [r, s, b], data) -> [r, s, b, o]`, batch by batch.
        keep: `(best, params, better [r]) -> best`, updated for the runs that are better.
    """

    mesh: Mesh
    create: Callable[[Members], TrainState]
    step: Callable[[TrainState, Members, Array, Batch], tuple[TrainState, Metrics]]
    outputs: Callable[[Any, Members, Array, Batch], Array]
    keep: Callable[[Any, Any, Array], Any]

    @classmethod
    def of(
        cls,
        config: StepConfig,
        init: Callable[[Any], TrainState],
        devices: Sequence[jax.Device] | None = None,
        vectorized: bool | None = None,
    ) -> "Population":
        """Maps the functions of a single run over all runs; each compiles at its first call.

        Args:
            config: Configuration of the step; each run replaces its seed.
            init: Function from a seed, which may be traced, to the first state.
            devices: Devices to use; all by default.
            vectorized: Whether the runs of a device are batched or take turns. By default they take
                turns on CPUs, where batched matrix products are slower.
        """
        devices = jax.devices() if devices is None else list(devices)
        mesh = jax.make_mesh(
            (len(devices),), ("runs",), axis_types=(AxisType.Auto,), devices=devices
        )

        def create(member):
            return init(member.seed)

        def step(state, member, rows, data):
            run_config = dataclasses.replace(config, seed=member.seed)
            return train_step(state, take_rows(data, member.fold, rows), config=run_config)

        def outputs(params, member, rows, data):
            def one_batch(rows):
                batch = take_rows(data, member.fold, rows)
                return config.apply(params, batch["inputs"], batch["mask"], None).logits

            return jax.lax.map(one_batch, rows)

        def keep(best, params, better):
            return jax.tree.map(lambda old, new: jnp.where(better, new, old), best, params)

        if vectorized is None:
            vectorized = devices[0].platform != "cpu"
        each = functools.partial(_over_runs, mesh, vectorized)
        return cls(
            mesh=mesh,
            create=jax.jit(each(create, 1)),
            step=jax.jit(each(step, 3), donate_argnums=0),
            outputs=jax.jit(each(outputs, 3)),
            keep=jax.jit(each(keep, 3), donate_argnums=0),
        )

    def put(self, tree: Any, *, runs: bool) -> Any:
        """Places arrays on the devices, split by runs or replicated."""
        return jax.device_put(tree, NamedSharding(self.mesh, RUNS if runs else _REPLICATED))


def _over_runs(mesh: Mesh, vectorized: bool, function: Callable, mapped: int) -> Callable:
    """Maps `function` over runs; its first `mapped` arguments have an axis of runs."""

    def on_device(*arguments):
        by_run, shared = arguments[:mapped], arguments[mapped:]
        if vectorized:
            return jax.vmap(lambda *run: function(*run, *shared))(*by_run)
        return jax.lax.map(lambda run: function(*run, *shared), by_run)

    def on_mesh(*arguments):
        specs = tuple(RUNS if i < mapped else _REPLICATED for i in range(len(arguments)))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=RUNS, check_vma=False)(
            *arguments
        )

    return on_mesh
