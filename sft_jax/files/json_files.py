"""Reader of JSON files that may be damaged or hostile, checked against a shape.

A shape is a function `(value, place)` that raises `MisfitError` unless the value fits. Shapes are
composed of shapes: `record({"step": integer(), "loss": number()})`.
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

# Far larger than any file of a run; larger files are refused before they are read.
LARGEST_FILE = 256 * 2**20
# Files of lines have no limit of their own, since they are read line by line.
LONGEST_LINE = 2**20
LONGEST_NAME = 500
_LARGEST_INTEGER = 2**63 - 1
# Sums and squares of such numbers are still finite in float64.
_LARGEST_NUMBER = 1e100
# Unpaired surrogates, which cannot be encoded in UTF-8.
_FIRST_SURROGATE, _LAST_SURROGATE = "\ud800", "\udfff"


class MisfitError(ValueError):
    """Value that does not fit its shape."""

    def __init__(self, place: str, found: Any, expected: str):
        """Builds the message about the value found at a place such as `runs[2].loss`."""
        shown = found if isinstance(found, Description) else reprlib.repr(found)
        super().__init__(f"{f'{place}: ' if place else ''}found {shown}, expected {expected}")


class Description(str):
    """Description of a value, for messages in which the value itself would say little."""


def anything(value: Any, place: str):
    """Shape of any value."""


def all_of(*shapes: Shape) -> Shape:
    """Shape of values that fit all of the shapes."""

    def check(value: Any, place: str):
        for shape in shapes:
            shape(value, place)

    return check


def text(limit: int = LONGEST_NAME) -> Shape:
    """Shape of a string of at most `limit` characters that can be encoded."""

    def check(value: Any, place: str):
        if not isinstance(value, str):
            raise MisfitError(place, value, "text")
        if len(value) > limit:
            raise MisfitError(place, Description(f"{len(value)} characters"), f"at most {limit}")
        if any(_FIRST_SURROGATE <= character <= _LAST_SURROGATE for character in value):
            raise MisfitError(place, value, "text in Unicode, without halves of characters")

    return check


def file_name(value: Any, place: str):
    """Shape of a string that can be part of a file name and leads to no other folder."""
    text(200)(value, place)
    if not value or value.startswith(".") or not value.isprintable() or set(value) & set("/\\"):
        raise MisfitError(place, value, "a part of a file's name, without a path in it")


def integer(least: int = 0, most: int = _LARGEST_INTEGER) -> Shape:
    """Shape of an integer."""

    def check(value: Any, place: str):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise MisfitError(place, value, f"a whole number from {least} to {most}")

    return check


def number(
    least: int | float = -_LARGEST_NUMBER,
    most: int | float = _LARGEST_NUMBER,
    undefined: bool = False,
) -> Shape:
    """Shape of a finite number, or NaN if it may be undefined."""

    def check(value: Any, place: str):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and isinstance(value, float) and math.isnan(value) and undefined:
            return
        if not fits or not least <= value <= most:
            raise MisfitError(place, value, f"a finite number from {least:g} to {most:g}")

    return check


def nullable(shape: Shape) -> Shape:
    """Shape of null or of values that fit another shape."""

    def check(value: Any, place: str):
        if value is not None:
            shape(value, place)

    return check


def list_of(shape: Shape, least: int = 0, most: int | None = None) -> Shape:
    """Shape of a list whose entries fit one shape."""

    def check(value: Any, place: str):
        if not isinstance(value, list):
            raise MisfitError(place, value, "a list")
        if len(value) < least or (most is not None and len(value) > most):
            many = f"at least {least}" if most is None else f"{least} to {most}"
            raise MisfitError(place, Description(f"{len(value)} entries"), many)
        for i, entry in enumerate(value):
            shape(entry, f"{place}[{i}]")

    return check


def map_of(shape: Shape, names: Shape | None = None) -> Shape:
    """Shape of an object with any names, whose values fit one shape."""
    check_name = text() if names is None else names

    def check(value: Any, place: str):
        if not isinstance(value, Mapping):
            raise MisfitError(place, value, "an object")
        for name, entry in value.items():
            check_name(name, f"{place}, a name in it" if place else "a name in it")
            shape(entry, _child(place, name))

    return check


def record(
    required: Mapping[str, Shape],
    optional: Mapping[str, Shape] | None = None,
    others: Shape | None = None,
) -> Shape:
    """Shape of an object with required and optional entries.

    All other entries fit `others`; None allows any.
    """
    shapes = {**required, **(optional or {})}

    def check(value: Any, place: str):
        if not isinstance(value, Mapping):
            raise MisfitError(place, value, f"an object with {', '.join(required)}")
        missing = [name for name in required if name not in value]
        if missing:
            names = Description(reprlib.repr(sorted(map(str, value))))
            raise MisfitError(place, names, f"also {missing}")
        for name, shape in shapes.items():
            if name in value:
                shape(value[name], _child(place, name))
        if others is not None:
            for name in value.keys() - shapes.keys():
                others(value[name], _child(place, name))

    return check


def check_value(
    value: Any, shape: Shape, where: str, remedy: str, error: type[Exception] = DataError
):
    """Raises `error`, which names `where` and `remedy`, unless a value fits a shape."""
    try:
        shape(value, "")
    except MisfitError as misfit:
        raise error(f"{where}: {misfit}; {remedy}") from None


def _child(place: str, name: str) -> str:
    return f"{place}.{name[:60]}" if place else name[:60]


def read_text(path: Path, remedy: str, error: type[Exception] = CheckpointError) -> str:
    """Reads a file as text in UTF-8; raises `error`, which names `remedy`, if that fails."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise error(f"{path}: found {size} bytes, expected at most {LARGEST_FILE}; {remedy}")
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as cause:
        raise error(f"{path}: found no text ({cause}), expected UTF-8; {remedy}") from cause


def parse(content: str, place: str, shape: Shape, remedy: str) -> Any:
    """Parses JSON from `place`, a file or a line of it.

    Raises:
        CheckpointError: The text is no JSON, or the value does not fit the shape.
    """
    try:
        value = json.loads(content)
    # Nesting too deep for the parser raises a RecursionError.
    except (ValueError, RecursionError) as cause:
        expected = "a value" if shape is anything else "an object"
        raise CheckpointError(
            f"{place}: found no JSON ({cause}), expected {expected}; {remedy}"
        ) from cause
    check_value(value, shape, place, remedy, CheckpointError)
    return value


def read_json(path: Path, shape: Shape, remedy: str = "write it again") -> Any:
    """Reads the value of a JSON file.

    Raises:
        CheckpointError: The file is damaged, or the value does not fit the shape.
    """
    return parse(read_text(path, remedy), str(path), shape, remedy)


def write_json(path: Path, content: Any):
    """Writes a value as JSON, atomically: a reader finds the old file or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_lines(path: Path, shape: Shape, remedy: str, ended: bool = False) -> Iterator[Any]:
    """Yields the values of a JSON lines file, each read when it is needed.

    With `ended`, a last line without a newline is skipped, as in a file being written.

    Raises:
        CheckpointError: A line is damaged, or its value does not fit the shape.
    """
    place = str(path)
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(LONGEST_LINE), b"")
            for number, line in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        found = f"found at least {LONGEST_LINE} bytes, expected fewer"
                        raise CheckpointError(f"{place}: {found}; {remedy}")
                    if ended:
                        return
                yield parse(line.decode().rstrip("\r\n"), place, shape, remedy)
                place = str(path)
    except (UnicodeDecodeError, OSError) as cause:
        raise CheckpointError(
            f"{place}: found no text ({cause}), expected UTF-8; {remedy}"
        ) from cause
