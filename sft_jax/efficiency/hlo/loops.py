"""Trip counts of loops in a compiled program."""

from sft_jax.efficiency.hlo.hlo_text import Computation, Instruction, Program

_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Trip count of a `while` in `computation`; None if it depends on data.

    The compiler may have recorded it. If not, it follows from a counter that starts at a constant,
    grows by one, and is compared with a constant.
    """
    recorded = loop.backend_config.get("known_trip_count")
    if recorded:
        return int(recorded["n"])
    condition = program.computations[loop.called("condition")[0]]
    body = program.computations[loop.called("body")[0]]
    compare = condition.instructions[condition.root]
    if compare.opcode != "compare" or len(loop.operands) != 1:
        return None
    counter = _element(condition, condition.operand(compare, 0))
    start, limit = _initial(computation, loop, counter), _constant(condition, compare, 1)
    if limit is None:
        limit = _initial(computation, loop, _unchanged(condition, body, compare))
    if counter is None or start is None or limit is None or _increment(body, counter) != 1:
        return None
    stop = {"LT": limit, "NE": limit, "LE": limit + 1}.get(compare.attribute("direction"))
    return None if stop is None else max(0, stop - start)


def _unchanged(condition: Computation, body: Computation, compare: Instruction) -> int | None:
    """Index of the carried element the counter is compared with, if the body passes it on."""
    index = _element(condition, condition.operand(compare, 1))
    root = body.instructions[body.root]
    if index is None or root.opcode != "tuple":
        return None
    return index if _element(body, body.operand(root, index)) == index else None


def _increment(body: Computation, counter: int) -> int | None:
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    add = _origin(body, body.operand(root, counter))
    if add.opcode != "add" or _element(body, body.operand(add, 0)) != counter:
        return None
    return _constant(body, add, 1)


def _initial(computation: Computation, loop: Instruction, index: int | None) -> int | None:
    carry = computation.operand(loop, 0)
    if index is None or carry.opcode != "tuple":
        return None
    return _constant(computation, carry, index)


def _constant(computation: Computation, instruction: Instruction, index: int) -> int | None:
    origin = _origin(computation, computation.operand(instruction, index))
    is_integer = origin.opcode == "constant" and origin.body.lstrip("-").isdigit()
    return int(origin.body) if is_integer else None


def _element(computation: Computation, instruction: Instruction) -> int | None:
    """Index of the element of the computation's parameter that an instruction reads."""
    origin = _origin(computation, instruction)
    if origin.opcode != "get-tuple-element":
        return None
    source = computation.operand(origin, 0)
    return int(origin.attribute("index")) if source.opcode == "parameter" else None


def _origin(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in _COPIES:
        instruction = computation.operand(instruction, 0)
    return instruction
