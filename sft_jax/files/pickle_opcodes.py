"""Check of a pickle, opcode by opcode, before any of it is executed."""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Iterator

from sft_jax.files import errors

_LENGTH_FORMATS = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_MEMO_OPCODES = frozenset(_PUTS + _GETS)
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
# Opcodes that push an object and pop nothing.
_CONSTANTS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if not opcode.stack_before and len(opcode.stack_after) == 1 and opcode.name != "MARK"
) - set(_GETS)
# What each opcode pops, and whether it pushes an object.
_EFFECTS = {
    opcode.name: (opcode.stack_before, bool(opcode.stack_after)) for opcode in pickletools.opcodes
}
# Memory of an object beyond its bytes in the stream: one byte creates a container, and a call may
# return one. Opcodes that are not listed take the default.
_OBJECT_BYTES = {
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), 216),
    **dict.fromkeys(("REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX"), 400),
    **dict.fromkeys(("EMPTY_LIST", "LIST"), 72),
}
_DEFAULT_OBJECT_BYTES = 64
# Picklers number their memo from 0 or 1; this leaves room for other numberings.
_MAX_MEMO_GAP = 1000
_MAX_EXTRA_TUPLE_PARTS = 1 << 16
# Hashing a tuple hashes its parts recursively on the C stack.
_MAX_TUPLE_DEPTH = 1000
# Number of parts and depth of an object that is no tuple.
_NO_TUPLE = (1, 0)


def opcodes(data: bytes | mmap.mmap) -> Iterator[tuple[str, int, int, int]]:
    """Yields the opcodes of a pickle up to `STOP`: name, start, start of its string, end.

    Raises:
        UnpicklingError: A byte is no opcode; the objects, or a memo index far out, would not fit in
            memory; or a tuple repeats its parts so often, or is nested so deeply, that hashing it
            would take forever or overflow the stack.
        EOFError: The stream ends too early, or a string is longer than the stream.
    """
    position, size, count = 0, len(data), 0
    stack, free_bytes = _TupleStack(), errors.memory_limit()
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
            format_ = _LENGTH_FORMATS[width]
            if body + format_.size > size:
                break
            length = format_.unpack_from(data, body)[0]
            body += format_.size
            stop = body + length if length >= 0 else size + 1
        else:
            stop = body + width
        if stop > size:
            break
        count += 1
        if opcode.stack_after:
            free_bytes -= _OBJECT_BYTES.get(opcode.name, _DEFAULT_OBJECT_BYTES)
        if free_bytes < 0:
            raise pickle.UnpicklingError(f"more objects than fit in memory up to byte {position}")
        memo_index = -1
        if opcode.name in _MEMO_OPCODES:
            raw = data[body:stop]
            memo_index = (
                int(raw) if opcode.name in ("PUT", "GET") else int.from_bytes(raw, "little")
            )
            if memo_index > count + _MAX_MEMO_GAP:
                raise pickle.UnpicklingError(f"{opcode.name} far out at byte {position}")
        parts, depth = stack.execute(opcode.name, memo_index)
        if parts > count + _MAX_EXTRA_TUPLE_PARTS:
            raise pickle.UnpicklingError(f"a tuple of very many parts at byte {position}")
        if depth > _MAX_TUPLE_DEPTH:
            raise pickle.UnpicklingError(f"a tuple of very many levels at byte {position}")
        yield opcode.name, position, body, stop
        if opcode.name == "STOP":
            return
        position = stop
    raise EOFError(f"the file ends after {size} bytes, in the middle of the pickle")


class _TupleStack:
    """Unpickler stack that holds, for each object, the number of parts and the depth of a tuple.

    Hashing a tuple visits everything in it as often as it occurs: with `n` tuples that each hold
    the one before twice, the innermost is visited 2^n times.
    """

    def __init__(self):
        self._stack: list[tuple[int, int]] = []
        self._marks: list[int] = []
        self._memo: dict[int, tuple[int, int]] = {}

    def execute(self, name: str, memo_index: int) -> tuple[int, int]:
        """Applies the effect of an opcode; returns the number of parts and the depth of the top."""
        stack = self._stack
        top = stack[-1] if stack else _NO_TUPLE
        if name in _CONSTANTS:
            stack.append(_NO_TUPLE)
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if name == "MEMOIZE" else memo_index] = top
        elif name == "DUP":
            stack.append(top)
        else:
            popped, pushes = _EFFECTS[name]
            if pickletools.markobject in popped:
                first = self._marks.pop() if self._marks else 0
                # Objects below the mark are popped, too, such as the list that is appended to.
                start = max(first - popped.index(pickletools.markobject), 0)
            else:
                first = start = max(len(stack) - len(popped), 0)
            result = self._memo.get(memo_index, _NO_TUPLE) if name in _GETS else _NO_TUPLE
            if name in _TUPLES:
                entries = stack[first:]
                depth = max((depth for _, depth in entries), default=0)
                result = 1 + sum(parts for parts, _ in entries), 1 + depth
            del stack[start:]
            if pushes:
                stack.append(result)
        return stack[-1] if stack else _NO_TUPLE
