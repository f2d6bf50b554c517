"""JSON files that somebody else may have written: read whole, checked against a shape, or refused.

A shape is a function `(value, place)` that returns when the value fits and raises `MisfitError`
when it does not. Shapes are made of shapes: `record({"step": integer(), "loss": number()})`.
"""

import json
import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_jax.types import CheckpointError, DataError

Shape = Callable[[Any, str], None]

# More than any file of a run holds by far; what is larger is refused before it is read.
LARGEST_FILE = 256 * 2**20
# A file of lines may be as long as it likes, since one is read at a time.
LONGEST_LINE = 2**20
LONGEST_NAME = 500
_LARGEST_INTEGER = 2**63 - 1
# What a sum, a square or a figure of float64 values can still hold.
_LARGEST_NUMBER = 1e100
# Lone halves of a character, which no file and no figure can hold.
_FIRST_SURROGATE, _LAST_SURROGATE = "\ud800", "\udfff"


class MisfitError(ValueError):
    """A value that does not have its shape: place, found, expected."""

    def __init__(self, place: str, found: Any, expected: str):
        """Says what was found, shortened, and what was expected."""
        shown = found if isinstance(found, Found) else reprlib.repr(found)
        super().__init__(f"{f'{place}: ' if place else ''}found {shown}, expected {expected}")


class Found(str):
    """What was found in words, where the value itself would say little."""


def anything(value: Any, place: str):
    """Fits every value."""


def both(*shapes: Shape) -> Shape:
    """What has every one of the shapes."""

    def check(value: Any, place: str):
        for of in shapes:
            of(value, place)

    return check


def text(limit: int = LONGEST_NAME) -> Shape:
    """A string that can be written to a file, of at most so many characters."""

    def check(value: Any, place: str):
        if not isinstance(value, str):
            raise MisfitError(place, value, "text")
        if len(value) > limit:
            raise MisfitError(place, Found(f"{len(value)} characters"), f"at most {limit}")
        if any(_FIRST_SURROGATE <= letter <= _LAST_SURROGATE for letter in value):
            raise MisfitError(place, value, "text in Unicode, without halves of characters")

    return check


def file_name(value: Any, place: str):
    """A string that can be a part of the name of a file, and leads to no other folder."""
    text(200)(value, place)
    if not value or value.startswith(".") or not value.isprintable() or set(value) & set("/\\"):
        raise MisfitError(place, value, "a part of a file's name, without a path in it")


def integer(least: int = 0, most: int = _LARGEST_INTEGER) -> Shape:
    """A whole number."""

    def check(value: Any, place: str):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise MisfitError(place, value, f"a whole number from {least} to {most}")

    return check


def number(
    least: int | float = -_LARGEST_NUMBER,
    most: int | float = _LARGEST_NUMBER,
    undefined: bool = False,
) -> Shape:
    """A finite number; NaN as well where it may be undefined."""

    def check(value: Any, place: str):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and isinstance(value, float) and math.isnan(value) and undefined:
            return
        if not fits or not least <= value <= most:
            raise MisfitError(place, value, f"a finite number from {least:g} to {most:g}")

    return check


def nullable(of: Shape) -> Shape:
    """null, or what has the shape."""

    def check(value: Any, place: str):
        if value is not None:
            of(value, place)

    return check


def listed(of: Shape, least: int = 0, most: int | None = None) -> Shape:
    """A list of at least so many entries of one shape."""

    def check(value: Any, place: str):
        if not isinstance(value, list):
            raise MisfitError(place, value, "a list")
        if len(value) < least or (most is not None and len(value) > most):
            many = f"at least {least}" if most is None else f"{least} to {most}"
            raise MisfitError(place, Found(f"{len(value)} entries"), many)
        for i, entry in enumerate(value):
            of(entry, f"{place}[{i}]")

    return check


def mapped(of: Shape, names: Shape | None = None) -> Shape:
    """An object of any names, whose entries have one shape."""
    check_name = text() if names is None else names

    def check(value: Any, place: str):
        if not isinstance(value, Mapping):
            raise MisfitError(place, value, "an object")
        for name, entry in value.items():
            check_name(name, f"{place}, a name in it" if place else "a name in it")
            of(entry, _below(place, name))

    return check


def record(
    required: Mapping[str, Shape],
    optional: Mapping[str, Shape] | None = None,
    others: Shape | None = None,
) -> Shape:
    """An object with these entries; others may be there, of any shape where none is given."""
    shapes = {**required, **(optional or {})}

    def check(value: Any, place: str):
        if not isinstance(value, Mapping):
            raise MisfitError(place, value, f"an object with {', '.join(required)}")
        missing = [name for name in required if name not in value]
        if missing:
            names = Found(reprlib.repr(sorted(map(str, value))))
            raise MisfitError(place, names, f"also {missing}")
        for name, of in shapes.items():
            if name in value:
                of(value[name], _below(place, name))
        if others is not None:
            for name in value.keys() - shapes.keys():
                others(value[name], _below(place, name))

    return check


def fits(value: Any, shape: Shape, where: str, remedy: str, error: type[Exception] = DataError):
    """Raises `error` with the place, what was found and expected, unless `value` has the shape."""
    try:
        shape(value, "")
    except MisfitError as misfit:
        raise error(f"{where}: {misfit}; {remedy}") from None


def _below(place: str, name: str) -> str:
    return f"{place}.{name[:60]}" if place else name[:60]


def read_text(path: Path, remedy: str, error: type[Exception] = CheckpointError) -> str:
    """A file as text in UTF-8.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read.
        error: what is raised then.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise error(f"{path}: found {size} bytes, expected at most {LARGEST_FILE}; {remedy}")
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as cause:
        raise error(f"{path}: found no text ({cause}), expected UTF-8; {remedy}") from cause


def parse(
    content: str,
    place: str,
    shape: Shape,
    remedy: str,
    error: type[Exception] = CheckpointError,
) -> Any:
    """A value from JSON.

    Args:
        content: the JSON.
        place: where it stands, for the message.
        shape: that it must have.
        remedy: what to do where it does not.
        error: what is raised then.
    """
    try:
        value = json.loads(content)
        shape(value, "")
    except MisfitError as misfit:
        raise error(f"{place}: {misfit}; {remedy}") from None
    # A RecursionError is nesting so deep that nobody wrote it by hand or by this package.
    except (ValueError, RecursionError) as cause:
        raise error(
            f"{place}: found no JSON ({cause}), expected {_kind(shape)}; {remedy}"
        ) from cause
    return value


def _kind(shape: Shape) -> str:
    return "a value" if shape is anything else "an object"


def read_json(
    path: Path,
    shape: Shape,
    remedy: str = "write it again",
    error: type[Exception] = CheckpointError,
) -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        shape: that the value must have.
        remedy: what to do where it does not.
        error: what is raised then, with the file and the place in it.
    """
    return parse(read_text(path, remedy, error), str(path), shape, remedy, error)


def write_json(path: Path, content: Any):
    """Writes a value as JSON, atomically: a reader finds the old file or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_lines(
    path: Path,
    shape: Shape,
    remedy: str,
    error: type[Exception] = CheckpointError,
    ended: bool = False,
) -> Iterator[Any]:
    """The values of a file with one in JSON a line, each read when it is asked for.

    Args:
        path: of the file.
        shape: that each value must have.
        remedy: what to do where one does not.
        error: what is raised then, with the file and the number of the line.
        ended: leave out a last line that has no end, as of a file that is written to.
    """
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(LONGEST_LINE), b"")
            for number, line in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        found = f"found at least {LONGEST_LINE} bytes, expected fewer"
                        raise error(f"{place}: {found}; {remedy}")
                    if ended:
                        return
                yield parse(_decoded(line, place, remedy, error), place, shape, remedy, error)
    except OSError as cause:
        raise error(f"{path}: found no text ({cause}), expected UTF-8; {remedy}") from cause


def _decoded(line: bytes, place: str, remedy: str, error: type[Exception]) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as cause:
        raise error(f"{place}: found no text ({cause}), expected UTF-8; {remedy}") from cause
