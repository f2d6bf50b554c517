"""What a training step will need and take on devices that are not there.

The step itself is compiled by the platform's own compiler, and what came out is read.
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
from sft_jax.efficiency.hlo.hlo_cost import ProgramCost, program_cost
from sft_jax.efficiency.layer_costs import layer_costs
from sft_jax.efficiency.model_costs import check_complete, random_batch
from sft_jax.efficiency.topology import Topology, devices
from sft_jax.tasks import from_config
from sft_jax.training.sharding import BATCH, make_mesh
from sft_jax.training.state import TrainState
from sft_jax.training.trainer import Trainer

# A search for the largest batch ends when what fits and what does not are this close.
CLOSE = 1.07
# Without a GPU the compiler cannot time kernels against each other, and its untimed first guess for
# a product may not compile; the library's products always do.
_OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a step on one chip.

    Attributes:
        parameters: of the model.
        optimizer: its state, and the scalars of the train state.
        batch: rows of this chip.
        padding: what filled-up tiles add to these, and results beside the new state.
        temporary: at the step's worst moment, as the compiler laid it out.
        activations: of the temporary ones, what the traced forward pass keeps for the backward
            pass, before the compiler fuses and pads.
        program: code and constants.
        capacity: what a program may take; 0 where there is no fixed number.
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
        """All at once; the new state takes the place of the old one."""
        state = self.parameters + self.optimizer + self.batch + self.padding
        return state + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Plan:
    """One model on one topology.

    Attributes:
        topology: planned for.
        batch_size: samples of a step over all chips.
        mesh: sizes of its axes by name.
        memory: of one chip; `temporary` is what the compiler asked for where it gave up.
        cost: of one chip and step; None where the compiler gave up.
        dtype: of the model's computation.
    """

    topology: Topology
    batch_size: int
    mesh: dict[str, int]
    memory: Memory
    cost: ProgramCost | None
    dtype: str

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None where there is no fixed capacity."""
        if not self.memory.capacity:
            return None
        return self.cost is not None and self.memory.total <= self.memory.capacity

    @property
    def rows(self) -> float:
        """Samples of a step on one chip."""
        return self.batch_size / self.topology.num_chips


def default_batch(config: Config, num_chips: int) -> int:
    """The configured batch if all chips can share it evenly, else as much on every chip."""
    size = config.train.batch_size
    return size if size % (num_chips * config.train.accumulate) == 0 else size * num_chips


def with_batch(config: Config, batch_size: int) -> Config:
    """The configuration at another global batch."""
    train = dataclasses.replace(config.train, batch_size=batch_size)
    return dataclasses.replace(config, train=train)


def plan(config: Config, topology: Topology) -> Plan:
    """Compiles the training step of a configuration, at its own batch size, and reads it.

    Raises:
        ConfigError: modalities or classes that are left to the data, a batch that the chips cannot
            share, or no compiler for the platform.
    """
    check_complete(config)
    platform = topology.chip.platform
    mesh = make_mesh(config.train, devices(topology))
    with compiling_for(platform):
        state, batch, lowered = _lower(config, mesh)
        kept = sum(layer.saved_bytes for layer in layer_costs(config))
    rows = config.train.batch_size // mesh.size
    memory = Memory(
        parameters=_bytes_on_chip(state.params),
        optimizer=_bytes_on_chip(dataclasses.replace(state, params=())),
        batch=_bytes_on_chip(batch),
        padding=0,
        temporary=0,
        activations=kept * rows // config.train.accumulate,
        program=0,
        capacity=topology.chip.memory,
    )
    cost = None
    try:
        compiled = lowered.compile(_OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = dataclasses.replace(memory, temporary=asked_for(str(error)) - memory.total)
    else:
        stats = compiled.memory_analysis()
        # The new state takes the place of the old one, which is what is aliased.
        held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        memory = dataclasses.replace(
            memory,
            padding=held - memory.total,
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


def asked_for(message: str) -> int:
    """Bytes that a compiler says a program would take when it ran out of memory.

    Raises:
        ValueError: the message does not say.
    """
    found = re.search(r"(?:Used |required for .*?\()([\d.]+)([KMGT])", message)
    if not found:
        raise ValueError(f"a compiler's message: expected the memory that it wants in {message!r}")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def largest_batch(measure: Callable[[int], Plan], first: Plan, unit: int) -> tuple[int, int | None]:
    """The largest global batch that fits, by bisection on compiled steps.

    Guesses follow the straight line through what has been compiled, since memory grows about
    linearly with the batch, so that few compilations suffice.

    Args:
        measure: plans another batch size.
        first: plan to begin with.
        unit: batch sizes are multiples of it.

    Returns:
        The largest batch that was seen to fit (0: none), and the smallest that was seen not to.
        They are at most `CLOSE` times or one unit apart.
    """
    found = {first.batch_size: first}
    while True:
        low = max((size for size, entry in found.items() if entry.fits), default=0)
        high = min((size for size, entry in found.items() if not entry.fits), default=None)
        if high is not None and high <= max(low * CLOSE, low + unit):
            return low, high
        guess = _guess(found, unit)
        if guess <= low:  # the line has been met: look a little above
            guess = max(low + unit, int(low * CLOSE) // unit * unit)
        if high is not None and guess >= high:
            guess = (low + high) // 2 // unit * unit
        found[guess] = measure(guess)


def _guess(found: dict[int, Plan], unit: int) -> int:
    """The batch at which the line through the two points nearest to the capacity meets it."""
    capacity = next(iter(found.values())).memory.capacity
    points = [(size, entry.memory.total) for size, entry in found.items()]
    points = sorted(points, key=lambda point: abs(point[1] - capacity))[:2]
    (size, total), (other, least) = points[0], points[1] if len(points) > 1 else (0, 0)
    slope = (total - least) / (size - other)
    room = (capacity - total) / slope if slope > 0 else size
    return int((size + room) // unit) * unit
