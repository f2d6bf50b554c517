"""Cost of one call of a compiled program: products, bytes moved, and collectives.

Bytes follow XLA's own model (`cost_analysis`): an instruction reads its operands and writes its
result, tiles padded, in any memory; a fusion counts as one instruction; renaming a buffer moves
nothing; slices and in-place updates count the slice. Three things differ: loop bodies count as
often as they run, an asynchronous copy counts once, and bytes of the main memory are also given
apart from those kept on the chip.
"""

import dataclasses
from collections import Counter

from sft_jax.efficiency.hlo import loops
from sft_jax.efficiency.hlo.hlo_text import ArrayShape, Computation, Instruction, Program, parse
from sft_jax.efficiency.hlo.products import flops, kernel_estimate, library_product

# Instructions that name, group or split buffers, or order others, and move nothing.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"),
    *("opt-barrier", "partition-id", "replica-id", "add-dependency", "get-dimension-size"),
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "Sharding", "SPMDFullToShardShape"}
_COLLECTIVES = (
    *("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
_RENAMES = ("bitcast", "get-tuple-element", "reshape")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
        kind: Name such as `all-reduce`.
        nbytes: Bytes of its operands or of its result, whichever is larger, without padding.
        group: Number of devices that take part together; 0 means all.
        count: Number of times it runs per call.
    """

    kind: str
    nbytes: int
    group: int
    count: int


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Cost of one call of a program on one device.

    Attributes:
        flops: Operations of matrix products and convolutions, two per multiply-add.
        nbytes: Bytes read and written.
        main_bytes: Part of `nbytes` in the device's main memory.
        collectives: Collectives that run.
        unknown_loops: Number of loops whose trip count depends on data; their bodies count once.
    """

    flops: int
    nbytes: int
    main_bytes: int
    collectives: tuple[Collective, ...]
    unknown_loops: int

    @property
    def collective_bytes(self) -> int:
        """Bytes of all collectives."""
        return sum(each.count * each.nbytes for each in self.collectives)


def program_cost(text: str) -> ProgramCost:
    """Computes the cost of a compiled program.

    Args:
        text: Result of `compiled.as_text()`.

    Raises:
        ValueError: The text cannot be parsed.
    """
    program = parse(text)
    counter = _Counter(program)
    counter.add(program.computations[program.entry], 1)
    return ProgramCost(
        flops=counter.flops,
        nbytes=sum(counter.spaces.values()),
        main_bytes=counter.spaces[0],
        collectives=tuple(counter.collectives),
        unknown_loops=counter.unknown_loops,
    )


class _Counter:
    """Running totals."""

    def __init__(self, program: Program):
        self.program = program
        self.flops = self.unknown_loops = 0
        self.spaces: Counter[int] = Counter()
        self.collectives: list[Collective] = []

    def add(self, computation: Computation, times: int):
        """Adds a computation that runs `times` times."""
        for instruction in computation.instructions.values():
            self._instruction(computation, instruction, times)

    def _instruction(self, computation: Computation, instruction: Instruction, times: int):
        opcode = instruction.opcode
        if opcode == "while":
            trips = loops.trip_count(self.program, computation, instruction)
            self.unknown_loops += trips is None
            for name in instruction.called("body", "condition"):
                self.add(self.program.computations[name], times * (1 if trips is None else trips))
        elif opcode == "conditional":
            self._add_most_expensive_branch(instruction, times)
        elif opcode in ("call", "async-start"):
            for name in instruction.called("to_apply", "calls", "called_computations"):
                self.add(self.program.computations[name], times)
        elif opcode not in _FREE and not opcode.endswith(("-start", "async-done", "async-update")):
            self.flops += times * flops(self.program, computation, instruction)
            for space, count in _moved(self.program, computation, instruction).items():
                self.spaces[space] += times * count
            self._collective(computation, instruction, times)

    def _add_most_expensive_branch(self, instruction: Instruction, times: int):
        keys = ("branch_computations", "true_computation", "false_computation")
        branches = []
        for name in instruction.called(*keys):
            branch = _Counter(self.program)
            branch.add(self.program.computations[name], times)
            branches.append(branch)
        most_expensive = max(branches, key=lambda branch: sum(branch.spaces.values()))
        self.flops += most_expensive.flops
        self.unknown_loops += most_expensive.unknown_loops
        self.spaces.update(most_expensive.spaces)
        self.collectives += most_expensive.collectives

    def _collective(self, computation: Computation, instruction: Instruction, times: int):
        kind = instruction.opcode.removesuffix("-done")
        if kind == "fusion":  # a TPU fuses a reduction with a slice, or a gather with a product
            inner = self.program.computations[instruction.called("calls")[0]]
            for part in inner.instructions.values():
                self._collective(inner, part, times)
        if kind not in _COLLECTIVES:
            return
        started = _started(computation, instruction)
        read = sum(s.nbytes for i in _operands(computation, started) for s in i.shapes)
        nbytes = max(read, sum(shape.nbytes for shape in instruction.shapes))
        self.collectives.append(Collective(kind, nbytes, _group(started), times))


def _group(instruction: Instruction) -> int:
    groups = instruction.attribute("replica_groups")
    if groups.startswith("["):  # for example [2,8]<=[16]: two groups of eight
        return int(groups[1:].split("]")[0].split(",")[-1])
    first = groups.split("}")[0].strip("{")
    return len(first.split(",")) if first else 0


def _started(computation: Computation, instruction: Instruction) -> Instruction:
    """The instruction with the operands: itself, or the matching start."""
    if instruction.opcode.endswith("-done"):
        return computation.operand(instruction, 0)
    return instruction


def _operands(computation: Computation, instruction: Instruction) -> list[Instruction]:
    return [computation.instructions[name] for name in instruction.operands]


def _moved(program: Program, computation: Computation, instruction: Instruction) -> Counter[int]:
    """Bytes read and written, by memory space."""
    opcode = instruction.opcode.removesuffix("-done")
    operands = _operands(computation, _started(computation, instruction))
    total: Counter[int] = Counter()
    if opcode == "fusion":
        return _fusion(program, computation, instruction)
    if opcode == "custom-call" and instruction.attribute("custom_call_target") in _FREE_CALLS:
        return total
    if opcode in ("dynamic-slice", "slice", "gather"):
        # Reads as much of the first operand as it writes, and all of the indices.
        written = sum(shape.padded_bytes for shape in instruction.shapes)
        total[operands[0].shapes[0].space] += written
        operands = operands[1:]
    elif opcode in ("dynamic-update-slice", "scatter"):
        update = operands[2 if opcode == "scatter" else 1]
        space = instruction.shapes[0].space
        # The buffer is updated in place; a scatter also reads what it adds to.
        total[space] += _bytes(update) * (2 if opcode == "scatter" else 1)
        for operand in operands[1:]:
            _count(total, operand.shapes)
        return total
    # The result of a library product is followed by scratch space, which is not moved.
    results = instruction.shapes[:1] if library_product(instruction) else instruction.shapes
    _count(total, results)
    for operand in operands:
        _count(total, operand.shapes)
    if opcode == "custom-call":
        # A kernel may read an array several times, as its own estimate states.
        again = kernel_estimate(instruction).get("bytes_accessed", 0) - sum(total.values())
        total[0] += max(0, again)
    return total


def _count(total: Counter[int], shapes: tuple[ArrayShape, ...]):
    for shape in shapes:
        total[shape.space] += shape.padded_bytes


def _bytes(instruction: Instruction) -> int:
    return sum(shape.padded_bytes for shape in instruction.shapes)


def _fusion(program: Program, outer: Computation, instruction: Instruction) -> Counter[int]:
    inner = program.computations[instruction.called("calls")[0]]
    total: Counter[int] = Counter()
    for parameter, operand in zip(inner.parameters, _operands(outer, instruction), strict=True):
        # A tuple operand counts in full.
        if len(operand.shapes) > 1:
            _count(total, operand.shapes)
        elif operand.shapes:
            total[operand.shapes[0].space] += _read(program, inner, parameter)
    root = inner.instructions[inner.root]
    leaves = _operands(inner, root) if root.opcode == "tuple" else [root]
    if len(leaves) != len(instruction.shapes):
        _count(total, instruction.shapes)
        return total
    for leaf, shape in zip(leaves, instruction.shapes, strict=True):
        total[shape.space] += _written(program, inner, leaf, shape)
    return total


def _read(program: Program, computation: Computation, source: Instruction) -> int:
    """Bytes that a fused computation reads of one array."""
    all_bytes, read = _bytes(source), 0
    if source.name == computation.root:
        return all_bytes
    for user in computation.users[source.name]:
        first = user.operands[0] == source.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            read += _bytes(user)
        elif user.opcode in ("dynamic-update-slice", "scatter") and first:
            # In place; a scatter reads what it adds to.
            read += _bytes(computation.operand(user, 2)) if user.opcode == "scatter" else 0
        elif user.opcode in _RENAMES:
            read += _read(program, computation, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called("calls")[0]]
            for parameter, name in zip(inner.parameters, user.operands, strict=True):
                if name == source.name:
                    read += _read(program, inner, parameter)
        else:
            return all_bytes
    return min(all_bytes, read)


def _written(
    program: Program, computation: Computation, leaf: Instruction, shape: ArrayShape
) -> int:
    """Bytes that a fused computation writes to one array of its result."""
    while leaf.opcode in _RENAMES and len(computation.operand(leaf, 0).shapes) == 1:
        leaf = computation.operand(leaf, 0)
    if leaf.opcode == "dynamic-update-slice":
        return min(shape.padded_bytes, _bytes(computation.operand(leaf, 1)))
    if leaf.opcode == "fusion" and len(leaf.shapes) == 1:
        inner = program.computations[leaf.called("calls")[0]]
        return _written(program, inner, inner.instructions[inner.root], shape)
    return shape.padded_bytes
