"""Trip counts of loops in a compiled program."""

from sft_jax.efficiency.hlo.hlo_text import Computation, Instruction, Program

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def turns(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """Trip count of a `while` in `computation`; None if it depends on data.

    It is the one the compiler recorded, or follows from a counter that starts at a constant, grows
    by one, and is compared with a constant.
    """
    noted = loop.backend_config.get("known_trip_count")
    if noted:
        return int(noted["n"])
    condition = program.computations[loop.called("condition")[0]]
    body = program.computations[loop.called("body")[0]]
    compare = condition.instructions[condition.root]
    if compare.opcode != "compare" or len(loop.operands) != 1:
        return None
    counter = _element(condition, condition.operand(compare, 0))
    start, limit = _initial(computation, loop, counter), _constant(condition, compare, 1)
    if limit is None:
        limit = _initial(computation, loop, _kept(condition, body, compare))
    if counter is None or start is None or limit is None or _step(body, counter) != 1:
        return None
    past = {"LT": limit, "NE": limit, "LE": limit + 1}.get(compare.attribute("direction"))
    return None if past is None else max(0, past - start)


def _kept(condition: Computation, body: Computation, compare: Instruction) -> int | None:
    """Index of the carried element the counter is compared with, if the body passes it on."""
    index = _element(condition, condition.operand(compare, 1))
    root = body.instructions[body.root]
    if index is None or root.opcode != "tuple":
        return None
    return index if _element(body, body.operand(root, index)) == index else None


def _step(body: Computation, counter: int) -> int | None:
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    grown = _origin(body, body.operand(root, counter))
    if grown.opcode != "add" or _element(body, body.operand(grown, 0)) != counter:
        return None
    return _constant(body, grown, 1)


def _initial(computation: Computation, loop: Instruction, index: int | None) -> int | None:
    carry = computation.operand(loop, 0)
    if index is None or carry.opcode != "tuple":
        return None
    return _constant(computation, carry, index)


def _constant(computation: Computation, instruction: Instruction, index: int) -> int | None:
    found = _origin(computation, computation.operand(instruction, index))
    whole = found.opcode == "constant" and found.body.lstrip("-").isdigit()
    return int(found.body) if whole else None


def _element(computation: Computation, instruction: Instruction) -> int | None:
    """Index of the element of the computation's parameter that an instruction reads."""
    found = _origin(computation, instruction)
    if found.opcode != "get-tuple-element":
        return None
    taken = computation.operand(found, 0)
    return int(found.attribute("index")) if taken.opcode == "parameter" else None


def _origin(computation: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode in _SAME:
        instruction = computation.operand(instruction, 0)
    return instruction
