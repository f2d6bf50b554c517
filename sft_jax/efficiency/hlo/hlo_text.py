"""Parser for the text of compiled programs: computations, instructions and shapes.

The text is XLA's optimised HLO, as `compiled.as_text()` prints it on any platform.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Shape and layout of an array.

    Attributes:
        dtype: XLA's name of the data type, such as `bf16`.
        dims: Sizes of the axes.
        minor_to_major: Axes in the order of their strides, smallest first.
        tile: Sizes that the minor physical axes are padded to multiples of; empty without tiles.
        space: Memory space; 0 is the device's main memory, others are on the chip (TPU).
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits of an element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        return int(re.findall(r"\d+", self.dtype)[0])

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return self.size * self.bits // 8

    @property
    def padded_bytes(self) -> int:
        """Bytes in memory, tiles padded."""
        physical = [self.dims[axis] for axis in self.minor_to_major]
        # The sizes of a tile are written major to minor.
        tile = self.tile[::-1]
        physical += [1] * (len(tile) - len(physical))
        for i, size in enumerate(tile):
            physical[i] = -(-physical[i] // size) * size
        return math.prod(physical) * self.bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: Name, unique in its computation.
        opcode: Operation such as `fusion`.
        shapes: Arrays of the result; several for a tuple, with nested tuples flattened.
        operands: Names of the operands.
        body: Text between the parentheses of the opcode.
        attributes: Text after them.
    """

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    body: str
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Names of computations in attributes such as `calls` or `to_apply`."""
        names = []
        for key in keys:
            for text in re.findall(rf"\b{key}=(%[\w.\-]+|\{{[^}}]*\}})", self.attributes):
                names += _NAME.findall(text)
        return names

    def attribute(self, key: str) -> str:
        """Value of an attribute without its outer braces; empty if there is none."""
        start = re.search(rf"(?:^|[ ,]){key}=", self.attributes)
        if not start:
            return ""
        rest = self.attributes[start.end() :]
        if rest.startswith("{"):
            return rest[1 : _closing(rest, 0)]
        value = re.match(r'"[^"]*"|(?:,(?! )|[^,\s])*', rest)
        return value.group().strip('"') if value else ""

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """Notes of the platform's compiler; empty if they are not a JSON object."""
        text = self.attribute("backend_config")
        try:
            config = json.loads(f"{{{text}}}") if text else {}
        except json.JSONDecodeError:
            return {}
        return config if isinstance(config, dict) else {}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text, and the name of the result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Users of each instruction, each listed once."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that computes an operand."""
        return self.instructions[instruction.operands[index]]

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Parameters in order."""
        parameters = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(parameters, key=lambda instruction: int(instruction.body))


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`.

    Raises:
        ValueError: There is no entry computation, or a line cannot be parsed.
    """
    computations, entry = {}, None
    lines = iter(text.splitlines())
    for line in lines:
        header = _HEADER.match(line)
        if header:
            name = header.group(2)
            computations[name] = _computation(name, lines)
            entry = name if header.group(1) else entry
    if entry is None:
        raise ValueError(
            "program text: found no ENTRY computation, expected one; pass compiled.as_text()"
        )
    return Program(computations, entry)


def _computation(name: str, lines: Iterator[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = ""
    for line in lines:
        if line.startswith("}"):
            break
        start = _LINE.match(line)
        if start:
            instruction = _instruction(start.group(2), line[start.end() :])
            instructions[instruction.name] = instruction
            root = instruction.name if start.group(1) else root
    if not instructions:
        raise ValueError(f"program text: found no instruction in computation {name!r}")
    return Computation(name, instructions, root or next(reversed(instructions)))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:]
    opcode = _OPCODE.match(rest)
    if not opcode:
        raise ValueError(f"program text: no opcode in {text[:200]!r}")
    close = _closing(rest, opcode.end() - 1)
    body = rest[opcode.end() : close]
    names = () if opcode.group(1) == "constant" else tuple(_NAME.findall(body))
    return Instruction(name, opcode.group(1), shapes_of(shape), names, body, rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, ignoring quoted text."""
    depth, quoted, i = 0, False, start
    while i < len(text):
        c = text[i]
        if quoted:
            if c == "\\":
                i += 1
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "({[":
            depth += 1
        elif c in ")}]":
            depth -= 1
            if not depth:
                return i
        i += 1
    raise ValueError(f"program text: a bracket is not closed in {text[:200]!r}")


def shapes_of(text: str) -> tuple[ArrayShape, ...]:
    """Parses the arrays of a shape such as `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`."""
    shapes = []
    for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", text)):
        sizes = tuple(int(d.strip("<=")) for d in dims.split(",") if d)
        order, _, rest = layout.partition(":")
        axes = tuple(int(axis) for axis in order.split(",") if axis) if sizes else ()
        tile = re.match(r"T\(([\d,]+)\)", rest)
        space = re.search(r"S\((\d+)\)", rest)
        shapes.append(
            ArrayShape(
                dtype,
                sizes,
                axes or tuple(range(len(sizes)))[::-1],
                tuple(map(int, tile.group(1).split(","))) if tile else (),
                int(space.group(1)) if space else 0,
            )
        )
    return tuple(shapes)
