"""The device mesh, and the placement of parameters and batches on it."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sft_jax.config.run import Config, MixupConfig, TrainConfig
from sft_jax.types import ConfigError

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)

# The first pattern that matches a parameter's path gives the axis to split over "fsdp". Axes count
# from the end, since stacked layers have a leading axis. Other parameters are replicated, and so
# are those whose axis the mesh does not divide; hence the width is preferred to the heads.
RULES: tuple[tuple[str, int], ...] = (
    (r"qkv_kernel$", -4),  # [d, 3, h, e]
    (r"attention/out/kernel$", -1),  # [h, e, d]
    (r"kernel$", -2),  # [in, out]
    (r"(embedding|positions)$", -1),  # [.., d]
)


def make_mesh(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A `("data", "fsdp")` mesh; a size of -1 takes the remaining devices.

    Raises:
        ConfigError: The sizes do not multiply to the number of devices, or do not divide the batch.
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


def for_these_devices(config: Config) -> Config:
    """Adapts the mesh and the batch size of a stored configuration to the present devices.

    Mixup is removed: evaluation does not use it, and its groups need not divide the new batch.
    """
    devices = jax.device_count()
    train = dataclasses.replace(
        config.train,
        data_parallel=-1,
        fsdp_parallel=1,
        accumulate=1,
        batch_size=-(-config.train.batch_size // devices) * devices,
    )
    return dataclasses.replace(config, train=train, mixup=MixupConfig())


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns a `NamedSharding` for every leaf of a state, from `RULES`.

    The paths of optimizer moments end with their parameter's path, so the same rules apply.
    """

    def shard(path, leaf):
        spec: list[str | None] = [None] * len(leaf.shape)
        axis = split_axis(path_name(path), leaf.shape, mesh.shape["fsdp"])
        if axis is not None:
            spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(shard, tree)


def split_axes(params: Any, mesh: Mesh) -> dict[str, int]:
    """The split axis, counted from the end, of every split parameter, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    axes = {
        path_name(path): split_axis(path_name(path), leaf.shape, mesh.shape["fsdp"])
        for path, leaf in leaves
    }
    return {name: axis for name, axis in axes.items() if axis is not None}


def split_axis(name: str, shape: tuple[int, ...], parts: int) -> int | None:
    """The axis, counted from the end, along which `RULES` split a parameter, or None."""
    for pattern, axis in RULES:
        if re.search(pattern, name):
            divides = parts > 1 and -axis <= len(shape) and shape[axis] % parts == 0
            return axis if divides else None
    return None


def path_name(path: Sequence[Any]) -> str:
    """A path in a pytree, joined by slashes."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Places the rows of this process in a global batch that is split over all devices.

    Args:
        batch: NumPy arrays of `b / processes` rows each.
        mesh: Mesh of all processes.
    """
    sharding = NamedSharding(mesh, BATCH)

    def put(x):
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    # The only intended transfer; with several processes, JAX counts it as an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(put, batch)


def describe_mesh(mesh: Mesh) -> str:
    """Describes a mesh in a line, such as `4 x cpu, data 4, fsdp 1`."""
    kind = mesh.devices.flat[0].device_kind
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{mesh.size} x {kind}, {sizes}"
