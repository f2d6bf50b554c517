"""The device mesh, and where parameters and batches live on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sft_jax.config.run import TrainConfig
from sft_jax.types import ConfigError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)

# First match of the parameter's path decides which axis is split over "fsdp", counted from the end,
# since the parameters of a stack have an axis of layers in front; the rest is replicated. An axis
# that the mesh does not divide is left whole, so that of the width is preferred to that of heads.
RULES: tuple[tuple[str, int], ...] = (
    (r"qkv_kernel$", -4),  # [d, 3, h, e]
    (r"attention/out/kernel$", -1),  # [h, e, d]
    (r"kernel$", -2),  # [in, out]
    (r"(embedding|positions)$", -1),  # [.., d]
)


def make_mesh(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A `("data", "fsdp")` mesh; a size of -1 takes the devices that are left.

    Raises:
        ConfigError: sizes that do not multiply to the device count, or a batch they cannot split.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.data_parallel, config.fsdp_parallel]
    if sizes.count(-1) == 1:
        fixed = max(sizes)
        sizes[sizes.index(-1)] = len(devices) // fixed if fixed > 0 else 0
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ConfigError(
            f"train.data_parallel, train.fsdp_parallel: given {config.data_parallel} and "
            f"{config.fsdp_parallel}, expected a product of {len(devices)} (devices); use -1 for "
            "one of them"
        )
    shards = len(devices) * config.accumulate
    if config.batch_size % shards:
        below = config.batch_size // shards * shards
        raise ConfigError(
            f"train.batch_size: given {config.batch_size}, expected a multiple of {shards} "
            f"({len(devices)} devices x {config.accumulate} micro-batches); use "
            f"{f'{below} or ' if below else ''}{below + shards}"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a state, by `RULES` on its path.

    Optimizer moments carry their parameter's path, so they follow it.
    """

    def shard(path, leaf):
        spec: list[str | None] = [None] * len(leaf.shape)
        axis = split_axis(path_name(path), leaf.shape, mesh.shape["fsdp"])
        if axis is not None:
            spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(shard, tree)


def split_axes(params: Any, mesh: Mesh) -> dict[str, int]:
    """The axis, counted from the end, of every parameter that is split, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    axes = {
        path_name(path): split_axis(path_name(path), leaf.shape, mesh.shape["fsdp"])
        for path, leaf in leaves
    }
    return {name: axis for name, axis in axes.items() if axis is not None}


def split_axis(name: str, shape: tuple[int, ...], parts: int) -> int | None:
    """The axis in which `RULES` split a parameter in `parts`, counted from the end, or None."""
    for pattern, axis in RULES:
        if re.search(pattern, name):
            divides = parts > 1 and -axis <= len(shape) and shape[axis] % parts == 0
            return axis if divides else None
    return None


def path_name(path: Sequence[Any]) -> str:
    """A path in a tree, with slashes."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a global batch, as arrays split over all devices.

    Args:
        batch: numpy leaves, each with `b / processes` rows.
        mesh: of all processes.
    """
    sharding = NamedSharding(mesh, BATCH)

    def put(x):
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    # The one transfer that is meant; with several processes JAX counts it as an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(put, batch)


def describe_mesh(mesh: Mesh) -> str:
    """One line, such as `4 x cpu, data 4, fsdp 1`."""
    kind = mesh.devices.flat[0].device_kind
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{mesh.size} x {kind}, {sizes}"
