"""A pickle's stream, looked at opcode by opcode before any of it is carried out."""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Iterator

from sft_jax.files.errors import memory_limit

_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_PLACES = frozenset(_PUTS + _GETS)
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
# What is put on the stack without anything being taken from it.
_CONSTANTS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if not opcode.stack_before and len(opcode.stack_after) == 1 and opcode.name != "MARK"
) - set(_GETS)
# What is taken from it, and whether anything is put there instead.
_EFFECTS = {
    opcode.name: (opcode.stack_before, bool(opcode.stack_after)) for opcode in pickletools.opcodes
}
# Bytes that an object takes beside what the stream holds of it: containers are made of one byte,
# and what a call makes may be a container, too. Others take the last.
_TAKEN = {"EMPTY_SET": 216, "FROZENSET": 216, "REDUCE": 400, "OBJ": 400, "INST": 400, "NEWOBJ": 400}
_TAKEN |= {"NEWOBJ_EX": 400, "EMPTY_LIST": 72, "LIST": 72}
_TAKEN_BY_OTHERS = 64
# Writers count from 0 or 1; room for others.
_MEMO_ROOM = 1000
_TUPLE_ROOM = 1 << 16
# Hashing a tuple hashes what is in it, level by level on the stack of the processor.
_MOST_LEVELS = 1000


def opcodes(data: bytes | mmap.mmap) -> Iterator[tuple[str, int, int, int]]:
    """Name, start, start of the string it holds, and end of every opcode up to the last.

    Raises:
        UnpicklingError: a byte is no opcode; something is to be remembered in a place so far out
            that the table of such places would not fit in memory, nor would all objects; or a tuple
            repeats its parts so often, or is so deep, that using it as a key would take forever or
            end Python.
        EOFError: the stream ends too early, or a string is longer than the stream.
    """
    position, size, count = 0, len(data), 0
    stack, room = _Stack(), memory_limit()
    while position < size:
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            raise pickle.UnpicklingError(f"{data[position : position + 1]!r} at byte {position}")
        body = position + 1
        width = opcode.arg.n if opcode.arg else 0
        if width == pickletools.UP_TO_NEWLINE:
            stop = body
            for _ in range(2 if opcode.arg and opcode.arg.name == "stringnl_noescape_pair" else 1):
                stop = data.find(b"\n", stop) + 1 or size + 1
        elif width < 0:
            form = _SIZES[width]
            if body + form.size > size:
                break
            length = form.unpack_from(data, body)[0]
            body += form.size
            stop = body + length if length >= 0 else size + 1
        else:
            stop = body + width
        if stop > size:
            break
        count += 1
        room -= _TAKEN.get(opcode.name, _TAKEN_BY_OTHERS) if opcode.stack_after else 0
        if room < 0:
            raise pickle.UnpicklingError(f"more objects than fit in memory up to byte {position}")
        place = -1
        if opcode.name in _PLACES:
            raw = data[body:stop]
            place = int(raw) if opcode.name in ("PUT", "GET") else int.from_bytes(raw, "little")
            if place > count + _MEMO_ROOM:
                raise pickle.UnpicklingError(f"{opcode.name} far out at byte {position}")
        if stack.step(opcode.name, place) > count + _TUPLE_ROOM:
            raise pickle.UnpicklingError(f"a tuple of very many parts at byte {position}")
        if stack.levels > _MOST_LEVELS:
            raise pickle.UnpicklingError(f"a tuple of very many levels at byte {position}")
        yield opcode.name, position, body, stop
        if opcode.name == "STOP":
            return
        position = stop
    raise EOFError(f"the file ends after {size} bytes, in the middle of the pickle")


class _Stack:
    """The stack of an unpickler, with parts and levels of a tuple in place of each object.

    To be used as a key, a tuple is looked at with all that is in it, as often as it is in it: one
    of two tuples, each twice the one before, is looked at 2^n times.
    """

    def __init__(self):
        self._parts: list[int] = []
        self._levels: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, tuple[int, int]] = {}

    @property
    def levels(self) -> int:
        """Of tuples within tuples in what is on top."""
        return self._levels[-1] if self._levels else 0

    def step(self, name: str, place: int) -> int:
        """Does what an opcode does, and returns the parts of what is then on top."""
        parts, levels = self._parts, self._levels
        if name in _CONSTANTS:
            parts.append(1)
            levels.append(0)
            return 1
        if name == "MARK":
            self._marks.append(len(parts))
            return 0
        if name in _PUTS or name == "MEMOIZE":
            top = parts[-1] if parts else 1
            self._memo[len(self._memo) if name == "MEMOIZE" else place] = top, self.levels
            return top
        if name == "DUP":
            levels.append(self.levels)
            parts.append(parts[-1] if parts else 1)
            return parts[-1]
        before, puts = _EFFECTS[name]
        if pickletools.markobject in before:
            first = self._marks.pop() if self._marks else 0
            # What lies below the mark, such as the list that is appended to.
            start = max(first - before.index(pickletools.markobject), 0)
        else:
            first = start = max(len(parts) - len(before), 0)
        made = self._memo.get(place, (1, 0)) if name in _GETS else (1, 0)
        if name in _TUPLES:
            made = 1 + sum(parts[first:]), 1 + max(levels[first:], default=0)
        del parts[start:], levels[start:]
        if puts:
            parts.append(made[0])
            levels.append(made[1])
        return parts[-1] if parts else 0
