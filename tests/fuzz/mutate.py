"""Inputs that are nearly valid, drawn by a seed.

Input `k` of a reader depends on the seed, the reader's name and `k` alone: the first ones are the
valid files as they are, every other is one of them, changed in one to five places.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.hostile import TOKENS, hostile_file
from tests.fuzz.mutate_formats import mutate_format

_NUMBERS = (0, 1, -1, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (*_NUMBERS, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def write_input(seed: int, reader: str, number: int, seeds: list[Path], folder: Path) -> Path:
    """Writes an input into `folder`.

    Args:
        seed: of all inputs.
        reader: whose inputs they are.
        number: of the input, from 0.
        seeds: the reader's valid inputs.
        folder: an empty folder.

    Returns:
        Where it is, under the name of the valid input it was made of.
    """
    rng = random.Random(f"{seed}/{reader}/{number}")
    chosen = seeds[number] if number < len(seeds) else rng.choice(seeds)
    target = folder / chosen.name
    if chosen.is_dir():
        shutil.copytree(chosen, target, symlinks=True)
    else:
        shutil.copyfile(chosen, target)
    if number >= len(seeds):
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            mutate(rng, target)
    return target


def mutate(rng: random.Random, path: Path) -> None:
    """Changes a file, or one file of a folder or its place in it."""
    if path.is_dir() and not path.is_symlink():
        files = sorted(file for file in path.rglob("*") if file.is_file() or file.is_symlink())
        if not files:
            return
        file = rng.choice(files)
        if rng.random() < 0.15 or file.is_symlink():
            _displace(rng, file, files)
        else:
            _change(rng, file)
    elif path.is_file():
        _change(rng, path)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes with a part flipped, replaced, moved, doubled or cut off."""
    return rng.choice(_BYTES)(rng, bytearray(data))


def _change(rng: random.Random, file: Path) -> None:
    draw = rng.random()
    if draw < 0.04:
        file.write_bytes(hostile_file(rng))
        return
    data = file.read_bytes()
    changed = mutate_format(rng, data, mutate_bytes) if draw < 0.55 else None
    file.write_bytes(mutate_bytes(rng, data) if changed is None else changed)


def _displace(rng: random.Random, file: Path, files: list[Path]) -> None:
    """Takes a file away, or puts something else in its place."""
    other = rng.choice(files)
    how = rng.randrange(6)
    if how == 0 and other != file and other.is_file():
        data = other.read_bytes()
        file.unlink()
        file.write_bytes(data)
        return
    if how == 1:
        place = file.with_name(rng.choice(("x", "..x", f"{file.name}.tmp", "0" * 200)))
        if not place.is_dir():  # as `_intrude` may have left there
            file.rename(place)
        return
    file.unlink()
    if how == 2:
        file.mkdir()
    elif how == 3:
        file.write_bytes(b"")
    elif how == 4:
        file.symlink_to(
            rng.choice(("/etc/hostname", "/", "nowhere", os.path.join("..", "..", "x")))
        )


def _flip(rng: random.Random, data: bytearray) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(rng: random.Random, data: bytearray) -> bytes:
    cut = rng.randrange(len(data) + 1)
    return bytes(data[:cut] if rng.random() < 0.8 else data[cut:])


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 100, 1000, 10000)))


def _remove(rng: random.Random, data: bytearray) -> bytes:
    start, stop = _span(rng, data)
    return bytes(data[:start] + data[stop:])


def _double(rng: random.Random, data: bytearray) -> bytes:
    start, stop = _span(rng, data)
    block = data[start:stop] * rng.choice((1, 1, 2, 20))
    return bytes(data[:stop] + block + data[stop:])


def _move(rng: random.Random, data: bytearray) -> bytes:
    start, stop = _span(rng, data)
    block = data[start:stop]
    del data[start:stop]
    to = rng.randrange(len(data) + 1)
    return bytes(data[:to] + block + data[to:])


def _number(rng: random.Random, data: bytearray) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(_LARGE) & ((1 << 8 * width) - 1)
    start = rng.randrange(len(data) + 1)
    data[start : start + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(data)


def _token(rng: random.Random, data: bytearray) -> bytes:
    token = rng.choice(TOKENS)
    start = rng.randrange(len(data) + 1)
    stop = start + (len(token) if rng.random() < 0.5 else 0)
    data[start:stop] = token
    return bytes(data)


def _known_token(rng: random.Random, data: bytearray) -> bytes:
    """One token that is there becomes another."""
    there = [token for token in TOKENS if token in data]
    if not there:
        return _token(rng, data)
    old = rng.choice(there)
    place = rng.choice([found.start() for found in re.finditer(re.escape(old), data)])
    data[place : place + len(old)] = rng.choice(TOKENS)
    return bytes(data)


def _zero(rng: random.Random, data: bytearray) -> bytes:
    start, stop = _span(rng, data)
    data[start:stop] = bytes([rng.choice((0, 255, 32))]) * (stop - start)
    return bytes(data)


_BYTES: tuple[Callable[[random.Random, bytearray], bytes], ...] = (
    _flip,
    _flip,
    _flip,
    _truncate,
    _remove,
    _double,
    _move,
    _number,
    _number,
    _token,
    _known_token,
    _zero,
)
