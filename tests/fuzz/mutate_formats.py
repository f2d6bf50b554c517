"""Changes that keep a file of its format: headers, members, values and cells."""

import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from tests.fuzz.hostile import BOMB_BYTES, hostile_npy, hostile_pickle
from tests.fuzz.zips import Packed, bomb, write_zip

Bytes = Callable[[random.Random, bytes], bytes]

_DTYPES = (
    "|O",
    "<f8",
    ">f4",
    "<f2",
    "|b1",
    "<i8",
    "|u1",
    "<U3",
    "|S4",
    "|V8",
    "<c16",
    "<M8[D]",
    "x",
)
_SIZES = ("0", "1", "2", "-1", "3", "7", "99999999", "4611686018427387904", "1" + "0" * 30, "True")
_CELLS = (
    "",
    "nan",
    "inf",
    "-1",
    "1e999",
    "x",
    "0",
    "1_0",
    "9" * 400,
    "\ufeff",
    "\u0661",
    '"',
    "1:2",
)


def mutate_format(rng: random.Random, data: bytes, change: Bytes) -> bytes | None:
    """Data of a known format, changed within it; None of any other.

    Args:
        rng: what is drawn from.
        data: a file.
        change: changes any bytes.
    """
    if data.startswith(b"PK\x03\x04"):
        return _zip(rng, data, change)
    if data.startswith(b"\x93NUMPY"):
        return mutate_npy(rng, data)
    if data[:1] in (b"{", b"["):
        return mutate_json(rng, data)
    if data[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return mutate_pickle(rng, data)
    if data[:256].isascii() and (b"," in data[:4096] or b":" in data[:4096]):
        return mutate_text(rng, data)
    return None


def mutate_npy(rng: random.Random, data: bytes) -> bytes:
    """Another shape, type or order in the header; the values stay as they are."""
    size = int.from_bytes(data[8:10], "little")
    header, values = data[10 : 10 + size].decode("latin1"), data[10 + size :]
    how = rng.randrange(4)
    if how == 0:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(_DTYPES)}'", header)
    elif how == 1:
        header = header.replace("'fortran_order': False", "'fortran_order': True")
    elif how == 2:
        header = re.sub(r"\d+(?=[,)])", lambda _: rng.choice(_SIZES), header, count=1)
    else:
        sizes = [rng.choice(_SIZES) for _ in range(rng.randrange(5))]
        header = re.sub(r"\([^)]*\)", f"({''.join(f'{size}, ' for size in sizes)})", header)
    header = header.rstrip()
    header += " " * (-(11 + len(header)) % 64) + "\n"
    return data[:8] + len(header).to_bytes(2, "little") + header.encode("latin1") + values


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """A call, a large size or a repeated part in the middle of the stream."""
    if len(data) < 3:
        return data  # there is no middle
    place = rng.randrange(2, len(data))
    # Where strings end, opcodes begin: most places are in the middle of values.
    starts = [found.start() for found in re.finditer(rb"[\x94q][^\x00]", data)]
    if starts and rng.random() < 0.7:
        place = rng.choice(starts) + 1
    how = rng.randrange(4)
    if how == 0:
        bad = hostile_pickle(rng)
        start = 2 if bad[:1] == b"\x80" else 0
        start += 9 if bad[start : start + 1] == b"\x95" else 0
        return data[:place] + bad[start:-1] + data[place:]
    if how == 1:
        sizes = (
            b"K\xff",
            b"J\xff\xff\xff\x7f",
            b"J\xff\xff\xff\xff",
            b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        )
        return data[:place] + rng.choice(sizes) + data[place:]
    if how == 2:
        old = list(re.finditer(rb"\x8c.|K.|M..", data, re.DOTALL))
        if old:
            found = rng.choice(old)
            new = rng.choice((b"K\x00", b"K\x01", b"M\xff\xff", b"N", b"\x88", b"]", b"}", b")"))
            return data[: found.start()] + new + data[found.end() :]
    other = rng.randrange(2, len(data))
    low, high = sorted((place, other))
    return data[:high] + data[low:high][:1000] + data[high:]


def mutate_json(rng: random.Random, data: bytes) -> bytes | None:
    """Another value, or of another type, somewhere in it; a name more or less."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    holders = _holders(content)
    if not holders:
        return None
    holder, key = rng.choice(holders)
    how = rng.randrange(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "../x", "__class__", "x" * 300, f"{key} "))] = holder.pop(key)
    elif how == 2 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 10, 1000)))
    else:
        holder[key] = _value(rng, holder[key])
    text = json.dumps(content)
    if how == 3:
        depth = rng.choice((10, 1000, 100_000))
        text = text.replace("0", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _holders(content: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    stack = [content]
    while stack:
        holder = stack.pop()
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])
    return found


def _value(rng: random.Random, old: Any) -> Any:
    values: tuple = (None, True, False, 0, -1, 1, 2**31, 2**64, 10**30, 1e308, -0.5, float("nan"))
    values += (float("inf"), "", "x", "../../outside.txt", "/etc/passwd", "\x00", "\ud800", [], {})
    values += ("tests.fuzz.bait.Bait", "tests.fuzz.bait", "antigravity.Geohash")
    values += ([old], {"x": old}, [0] * 1000, str(old), "9" * 5000)
    if isinstance(old, int | float):
        values += (old + 1, old * 2, -old, old * 10**9, float(old))
    return rng.choice(values)


def mutate_text(rng: random.Random, data: bytes) -> bytes:
    """Other cells, or lines that are missing, doubled or changed places."""
    lines = data.split(b"\n")
    row = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        del lines[row]
    elif how == 1:
        lines[row:row] = [lines[row]] * rng.choice((1, 3, 100))
    elif how == 2:
        other = rng.randrange(len(lines))
        lines[row], lines[other] = lines[other], lines[row]
    else:
        mark = rng.choice((b",", b":", b" "))
        cells = lines[row].split(mark)
        place = rng.randrange(len(cells))
        if how == 3:
            del cells[place]
        elif how == 4:
            cells.insert(place, cells[place])
        else:
            cells[place] = rng.choice(_CELLS).encode()
        lines[row] = mark.join(cells)
    return b"\n".join(lines)


def _zip(rng: random.Random, data: bytes, change: Bytes) -> bytes | None:
    """Members changed, renamed, doubled, missing, or of another size than they say."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if info.file_size < BOMB_BYTES // 8]
            read = [(info.filename, _unpacked(archive, info)) for info in infos]
    # It was damaged by an earlier change.
    except (zipfile.BadZipFile, ValueError, OSError, zlib.error, NotImplementedError, EOFError):
        return None
    except (RuntimeError, KeyError):
        return None
    if not read:
        return None
    members: list[tuple[str, bytes | Packed]] = list(read)
    place = rng.randrange(len(members))
    name, content = read[place]
    how = rng.randrange(10)
    if how == 0:
        del members[place]
    elif how == 1:
        other = rng.choice(read)[0]
        names = (f"../{name}", f"/tmp/{name}", f"a/{name}", other, f"..\\{name}", "x" * 300, "")
        members[place] = (rng.choice(names), content)
    elif how == 2:
        members.append(members[place])
    elif how == 3:
        members[place] = (name, hostile_npy(rng))
    elif how == 4 and rng.random() < 0.2:
        members[place] = (name, bomb(content[:200], rng.choice((1 << 20, BOMB_BYTES))))
    elif how < 9:
        changed = mutate_format(rng, content, change) if rng.random() < 0.8 else None
        members[place] = (name, change(rng, content) if changed is None else changed)
    made = bytearray(write_zip(members))
    if how == 9:
        _lie(rng, made)
    return bytes(made)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, of which no more is unpacked than its size: that may be a lie."""
    with archive.open(info) as stream:
        return stream.read(info.file_size + 1)


def _lie(rng: random.Random, data: bytearray) -> None:
    """Puts another size of a member into its headers."""
    size = rng.choice((0, 1, 2**20, 2**31 - 1, 2**32 - 1, 2**32 - 2)).to_bytes(4, "little")
    # Where sizes are: unpacked, in a central or a local header.
    mark, offset = rng.choice(((b"PK\x01\x02", 24), (b"PK\x01\x02", 20), (b"PK\x03\x04", 22)))
    places = [found.start() for found in re.finditer(re.escape(mark), data)]
    if places:
        start = rng.choice(places) + offset
        data[start : start + 4] = size
