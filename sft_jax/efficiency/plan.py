"""Plans of a training step on devices that need not be present: memory, work and traffic.

The training step is compiled by the target platform's own compiler, and the result is read.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sft_jax.attention.platform import compiling_for
from sft_jax.config.run import Config
from sft_jax.efficiency import roofline
from sft_jax.efficiency.hlo.hlo_cost import ProgramCost, program_cost
from sft_jax.efficiency.layer_costs import layer_costs
from sft_jax.efficiency.model_costs import check_complete, random_batch
from sft_jax.efficiency.topology import Topology, devices
from sft_jax.tasks import from_config
from sft_jax.training.sharding import BATCH, make_mesh
from sft_jax.training.state import TrainState
from sft_jax.training.trainer import Trainer

# The search for the largest batch ends when a fitting and a failing size are this close.
SEARCH_RATIO = 1.07
# Without a GPU the compiler cannot time kernels against each other, and its untimed first choice
# for a matrix product may not compile. The library's products always do.
_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a step on one chip.

    Attributes:
        parameters: Model parameters.
        optimizer: Optimizer state and the scalars of the train state.
        batch: This chip's rows of the batch.
        padding: Padding of tiles, and results besides the new state.
        temporary: Peak of the compiler's own buffers.
        activations: Part of `temporary` that the traced forward pass keeps for the backward pass,
            before the compiler fuses and pads.
        program: Code and constants.
        capacity: Memory that a program may use; 0 if there is no fixed limit.
    """

    parameters: int
    optimizer: int
    batch: int
    padding: int
    temporary: int
    activations: int
    program: int
    capacity: int

    @property
    def total(self) -> int:
        """Sum of all parts; the new state reuses the memory of the old one."""
        state = self.parameters + self.optimizer + self.batch + self.padding
        return state + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Plan:
    """One model on one topology.

    Attributes:
        topology: Devices of the plan.
        batch_size: Samples per step over all chips.
        mesh: `{axis: size}` of the device mesh.
        memory: Memory of one chip; if compilation failed, `temporary` is what the compiler needed.
        cost: Cost of one step on one chip; None if compilation failed.
        dtype: Data type of the model's computation.
        largest_batch: Largest global batch that fits; None if it was not searched for.
    """

    topology: Topology
    batch_size: int
    mesh: dict[str, int]
    memory: Memory
    cost: ProgramCost | None
    dtype: str
    largest_batch: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the step fits into memory; None without a fixed capacity."""
        if not self.memory.capacity:
            return None
        return self.cost is not None and self.memory.total <= self.memory.capacity

    @property
    def rows(self) -> float:
        """Samples per step on one chip."""
        return self.batch_size / self.topology.num_chips

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of a step's time (see `roofline.seconds`); empty if unknown."""
        if self.cost is None:
            return {}
        topology = self.topology
        return roofline.seconds(self.cost, topology.chip, self.dtype, topology.num_chips)

    @property
    def bound_by(self) -> str | None:
        """Resource with the largest lower bound."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else None

    @property
    def communication(self) -> str | None:
        """Description of what the chips send to each other; None if compilation failed."""
        if self.cost is None:
            return None
        return roofline.describe(self.cost.collectives, self.mesh["fsdp"])


def default_batch(config: Config, num_chips: int) -> int:
    """The configured batch size if chips can share it evenly, else that many samples per chip."""
    size = config.train.batch_size
    return size if size % (num_chips * config.train.accumulate) == 0 else size * num_chips


def with_batch(config: Config, batch_size: int) -> Config:
    """Returns the configuration with another global batch size."""
    train = dataclasses.replace(config.train, batch_size=batch_size)
    return dataclasses.replace(config, train=train)


def plan_model(
    config: Config, topology: Topology, batch_size: int = 0, search_largest: bool = False
) -> Plan:
    """Plans one model on one topology.

    Args:
        config: Configuration of the model.
        topology: Devices to compile for.
        batch_size: Samples per step over all chips; 0 takes `default_batch`.
        search_largest: Whether to search for the largest batch, if the chip's memory is known.
    """

    def plan_with(size: int) -> Plan:
        return plan(with_batch(config, size), topology)

    first = plan_with(batch_size or default_batch(config, topology.num_chips))
    if not search_largest or not first.memory.capacity:
        return first
    unit = topology.num_chips * config.train.accumulate
    return dataclasses.replace(first, largest_batch=largest_batch(plan_with, first, unit)[0])


def plan(config: Config, topology: Topology) -> Plan:
    """Compiles the training step of a configuration and reads the compiled program.

    Raises:
        ConfigError: Modalities or outputs are left to the data, the chips cannot share the batch,
            or there is no compiler for the platform.
    """
    check_complete(config)
    platform = topology.chip.platform
    mesh = make_mesh(config.train, devices(topology))
    with compiling_for(platform):
        state, batch, lowered = _lower(config, mesh)
        saved = sum(layer.saved_bytes for layer in layer_costs(config))
    rows = config.train.batch_size // mesh.size
    memory = Memory(
        parameters=_bytes_on_chip(state.params),
        optimizer=_bytes_on_chip(dataclasses.replace(state, params=())),
        batch=_bytes_on_chip(batch),
        padding=0,
        temporary=0,
        activations=saved * rows // config.train.accumulate,
        program=0,
        capacity=topology.chip.memory,
    )
    cost = None
    try:
        compiled = lowered.compile(_OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = dataclasses.replace(memory, temporary=needed_bytes(str(error)) - memory.total)
    else:
        stats = compiled.memory_analysis()
        # Aliased bytes are the old state, whose memory the new state reuses.
        total = (
            stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        )
        memory = dataclasses.replace(
            memory,
            padding=total - memory.total,
            temporary=stats.temp_size_in_bytes,
            program=stats.generated_code_size_in_bytes,
        )
        cost = program_cost(compiled.as_text())
    size, sizes = config.train.batch_size, dict(mesh.shape)
    return Plan(topology, size, sizes, memory, cost, config.model.dtype)


def _lower(config: Config, mesh: Mesh) -> tuple[TrainState, Any, Any]:
    trainer = Trainer.of(config, from_config(config), 1000, mesh)
    state = trainer.abstract_state()
    sharding, rows = NamedSharding(mesh, BATCH), config.train.batch_size
    train = dataclasses.replace(config.train, batch_size=1, accumulate=1)
    sample = random_batch(dataclasses.replace(config, train=train))
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding), sample
    )
    return state, batch, trainer.compile_train_step(state).lower(state, batch)


def _bytes_on_chip(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def needed_bytes(message: str) -> int:
    """Parses the bytes a program needs from a compiler's out-of-memory message.

    Raises:
        ValueError: The message does not contain them.
    """
    match = re.search(r"(?:Used |required for .*?\()([\d.]+)([KMGT])", message)
    if not match:
        raise ValueError(f"compiler message: expected the memory it needs, given {message!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def largest_batch(measure: Callable[[int], Plan], first: Plan, unit: int) -> tuple[int, int | None]:
    """Finds the largest global batch that fits, by bisection on compiled steps.

    Memory grows about linearly with the batch, so guesses follow the line through the last two
    compilations.

    Args:
        measure: Function from a batch size to its plan.
        first: Plan to start from.
        unit: Step between batch sizes.

    Returns:
        The largest batch that fits (0 if none does) and the smallest that does not. They differ by
        at most a factor of `SEARCH_RATIO`, or by one unit.
    """
    plans = {first.batch_size: first}
    while True:
        low = max((size for size, plan in plans.items() if plan.fits), default=0)
        high = min((size for size, plan in plans.items() if not plan.fits), default=None)
        if high is not None and high <= max(low * SEARCH_RATIO, low + unit):
            return low, high
        guess = _guess(plans, unit)
        if guess <= low:  # the guess was right: try slightly above it
            guess = max(low + unit, int(low * SEARCH_RATIO) // unit * unit)
        if high is not None and guess >= high:
            guess = (low + high) // 2 // unit * unit
        plans[guess] = measure(guess)


def _guess(plans: dict[int, Plan], unit: int) -> int:
    """Batch size where the line through the two plans nearest to the capacity reaches it."""
    capacity = next(iter(plans.values())).memory.capacity
    points = [(size, plan.memory.total) for size, plan in plans.items()]
    points = sorted(points, key=lambda point: abs(point[1] - capacity))[:2]
    (size, total), (other_size, other_total) = points[0], points[1] if len(points) > 1 else (0, 0)
    slope = (total - other_total) / (size - other_size)
    room = (capacity - total) / slope if slope > 0 else size
    return int((size + room) // unit) * unit
