"""Zip archives of anything, such as members that are far larger than the archive."""

import dataclasses
import functools
import struct
import zlib

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UTF8, _DEFLATED = 20, 1 << 11, 8
# The first day there is.
_DATE = (0, 33)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A compressed member: its bytes, and check sum and size of what they unpack to."""

    data: bytes
    crc: int
    size: int


def pack(data: bytes) -> Packed:
    """A member that holds `data`."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return Packed(deflate.compress(data) + deflate.flush(), zlib.crc32(data), len(data))


@functools.cache
def bomb(start: bytes, size: int) -> Packed:
    """A member of `start` and zeros behind it, `size` bytes in all, that is never unpacked here."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed, crc, block = bytearray(deflate.compress(start)), zlib.crc32(start), bytes(1 << 20)
    packed += deflate.flush(zlib.Z_FULL_FLUSH)
    repeated = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    count, rest = divmod(size - len(start), len(block))
    packed += repeated * count
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    packed += deflate.compress(block[:rest]) + deflate.flush()
    return Packed(bytes(packed), zlib.crc32(block[:rest], crc), size)


def write_zip(members: list[tuple[str, bytes | Packed]]) -> bytes:
    """The archive of these members, in this order, whatever their names are."""
    body, directory = bytearray(), bytearray()
    for name, content in members:
        packed = pack(content) if isinstance(content, bytes) else content
        raw = name.encode()
        sizes = (packed.crc, len(packed.data), packed.size)
        common = (_VERSION, _UTF8, _DEFLATED, *_DATE, *sizes, len(raw), 0)
        directory += _CENTRAL.pack(b"PK\x01\x02", _VERSION, *common, 0, 0, 0, 0, len(body)) + raw
        body += _LOCAL.pack(b"PK\x03\x04", *common) + raw + packed.data
    count = len(members)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)
