"""Devices to compile for that need not be present: TPU slices and GPU nodes, by name."""

import contextlib
import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies
from packaging.requirements import Requirement

from sft_jax.efficiency.chips import CHIPS, Chip, target_config
from sft_jax.types import ConfigError

EXAMPLES = "v5e:4x4, v4:4x4x4 (or v4-128, which counts cores), v5p:2x2x2, v6e:1, h100:8, cpu:1"
_NAME = re.compile(r"([a-z]+\d*[a-z]*?)(?:litepod)?([:-])(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and their network.

    Attributes:
        name: Name such as `v5e:4x4`.
        chip: Kind of the chips.
        shape: Chips along each axis of a TPU slice's network; hosts and GPUs per host otherwise.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Number of chips, each one JAX device."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Text such as `v4:4x4x4, 64 chips (v4-128, which counts cores)`."""
        kind = self.name.split(":")[0]
        unit = {"tpu": "chip", "gpu": "GPU", "cpu": "device"}[self.chip.platform]
        chips = f"{self.num_chips} {unit}"
        text = f"{self.name}, {chips}{'' if self.num_chips == 1 else 's'}"
        if self.chip.cores > 1:
            text += f" ({kind}-{self.chip.cores * self.num_chips}, which counts cores)"
        return text


def parse(name: str) -> Topology:
    """Parses a topology's name: a kind of chip with a shape or a number of chips.

    `v5e:4x4` gives the shape of a slice and `v5e:16` a number of chips in their usual shape.
    `v5e-16` and `v4-128` are rented names, which count chips, or cores for v4 and v5p.

    Raises:
        ConfigError: The name is unknown, or the chip's network does not have this shape.
    """
    match = _NAME.fullmatch(name.lower())
    kind = match and {"v5": "v5e"}.get(match.group(1), match.group(1))
    if not match or kind not in CHIPS:
        raise ConfigError(f"topology: given {name!r}, expected a name such as {EXAMPLES}")
    chip, sizes = CHIPS[kind], [int(size) for size in match.group(3).split("x")]
    if len(sizes) == 1:
        sizes = _shape(name, chip, sizes[0], counts_cores=match.group(2) == "-")
    elif len(sizes) != chip.axes:
        axes = f"{chip.axes} sizes" if chip.axes else "a number"
        raise ConfigError(f"topology: given {name!r}, expected {axes} after {kind}:, {EXAMPLES}")
    if min(sizes) < 1:
        raise ConfigError(f"topology: given {name!r}, expected sizes of at least 1")
    shape = "x".join(map(str, sizes)) if chip.axes else str(math.prod(sizes))
    return Topology(f"{kind}:{shape}", chip, tuple(sizes))


def _shape(name: str, chip: Chip, number: int, counts_cores: bool) -> list[int]:
    if chip.platform == "cpu":
        return [number]
    if chip.platform == "gpu":
        if number > chip.host and number % chip.host:
            raise ConfigError(
                f"topology: given {name!r}, expected a multiple of {chip.host}, GPUs of a node"
            )
        return [max(1, number // chip.host), min(number, chip.host)]
    chips = number // chip.cores if counts_cores else number
    power = max(chips, 1).bit_length() - 1
    if chips != 2**power or (counts_cores and number % chip.cores):
        raise ConfigError(
            f"topology: given {name!r}, expected a power of two of chips; give another shape as "
            f"in {EXAMPLES}"
        )
    # As even as possible, smaller sizes first; 3D slices grow from the flat 2x2x1 of one host.
    if chip.axes == 3 and power == 2:
        return [2, 2, 1]
    return [2 ** ((power + axis) // chip.axes) for axis in range(chip.axes)]


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to build a mesh from and to compile for.

    Raises:
        ConfigError: The platform's compiler is not installed or does not match this jax, or (for
            `cpu`) there are fewer devices.
    """
    chip = topology.chip
    if chip.platform == "cpu":
        present = jax.devices("cpu")
        if len(present) < topology.num_chips:
            raise ConfigError(
                f"topology: given {topology.name}, expected at most {len(present)} devices; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.num_chips}"
            )
        return present[: topology.num_chips]
    check_compiler(chip.platform)
    with _no_device_needed():
        return list(_describe(topology).devices)


def _describe(topology: Topology) -> Any:
    chip, sizes = topology.chip, topology.shape
    if chip.platform == "gpu":
        shape = "x".join(map(str, (1, *sizes)))
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=shape,
            topology=shape,
            target_config=target_config(chip),
        )
    # A host has 2x2 chips if the slice is large enough.
    host = tuple(2 if axis < 2 and size % 2 == 0 else 1 for axis, size in enumerate(sizes))
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=topology.name,
        chip_config_name=chip.chip_config,
        chips_per_host_bounds=(*host, 1)[:3],
    )


# Platform -> package with its compiler, and the extras of this package and of jax that install it.
_COMPILERS = {"tpu": ("libtpu", "tpu", "tpu"), "gpu": ("jax-cuda12-plugin", "cuda", "cuda12")}


def check_compiler(platform: str):
    """Raises `ConfigError` unless the platform's compiler is installed in the required version."""
    package, extra, jax_extra = _COMPILERS[platform]
    remedy = f"pip install 'sft_jax[{extra}]' (or 'jax[{jax_extra}]')"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"topology: given a {platform} one, but {package}, which holds the compiler, is "
            f"not installed; {remedy}"
        ) from None
    required = _requirement(package, jax_extra)
    if required is not None and not required.specifier.contains(version, prereleases=True):
        raise ConfigError(
            f"topology: found {package} {version}, expected {required.specifier} beside jax "
            f"{metadata.version('jax')}; {remedy}"
        )


def _requirement(package: str, extra: str) -> Requirement | None:
    """The requirement of one of jax's extras on a package; None if there is none."""
    for text in metadata.requires("jax") or []:
        required = Requirement(text)
        marker = required.marker
        if required.name == package and marker and marker.evaluate({"extra": extra}):
            return required
    return None


@contextlib.contextmanager
def _no_device_needed() -> Iterator[None]:
    """Keeps plugins from looking for devices and from reporting that there are none."""
    # Let several processes compile at once, and do not query the cloud's metadata server.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # The type stubs of jax do not list every setting.
    if jax.config.jax_platforms is None:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
