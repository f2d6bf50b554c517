"""A pickle's stream, looked at opcode by opcode before any of it is carried out."""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Iterator

_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
# Writers count from 0 or 1; room for others.
_MEMO_ROOM = 1000


def opcodes(data: bytes | mmap.mmap) -> Iterator[tuple[str, int, int, int]]:
    """Name, start, start of the string it holds, and end of every opcode up to the last.

    Raises:
        UnpicklingError: a byte is no opcode, or something is to be remembered in a place so far
            out that the table of such places would not fit in memory.
        EOFError: the stream ends too early, or a string is longer than the stream.
    """
    position, size, count = 0, len(data), 0
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
        if opcode.name in _PUTS and _place(opcode.name, data[body:stop]) > count + _MEMO_ROOM:
            raise pickle.UnpicklingError(f"{opcode.name} far out at byte {position}")
        yield opcode.name, position, body, stop
        if opcode.name == "STOP":
            return
        position = stop
    raise EOFError(f"the file ends after {size} bytes, in the middle of the pickle")


def _place(name: str, raw: bytes) -> int:
    return int(raw) if name == "PUT" else int.from_bytes(raw, "little")
