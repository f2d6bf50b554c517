"""Readers with a defect each, which the harness must find."""

import importlib
import os
import pickle
from pathlib import Path

import numpy as np

from tests.fuzz.harness import Reader


def _write(folder: Path) -> list[Path]:
    path = folder / "numbers.txt"
    path.write_text("1,2,3\n4,5,6\n")
    return [path]


def _sound(path: Path) -> None:
    try:
        [float(cell) for line in path.read_text().split("\n")[:-1] for cell in line.split(",")]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _on_change(defect):
    """A reader with a defect that shows once the file is another one than the valid one."""

    def read(path: Path) -> None:
        if path.read_bytes() != b"1,2,3\n4,5,6\n":
            defect(path)

    return read


def _evaluates(path: Path) -> None:
    eval("1 + 1")


def _unpickles(path: Path) -> None:
    pickle.loads(b"cos\ngetcwd\n)R.")


def _writes(path: Path) -> None:
    (path.parent.parent / "outside.txt").write_text("x")


def _imports(path: Path) -> None:
    importlib.import_module("tests.fuzz.bait")


def _loops(path: Path) -> None:
    while True:
        pass


def _allocates(path: Path) -> None:
    np.ones(120 << 20, np.uint8)


def _asks_for_much(path: Path) -> None:
    try:
        np.zeros(1 << 40, np.uint8)
    # Hidden behind a named error, it is as bad.
    except MemoryError as error:
        raise ValueError("too large") from error


def _looks_up(path: Path) -> None:
    {}["x"]


def _dies(path: Path) -> None:
    os.abort()


def _reader(name, read):
    return Reader(name, _write, read, (ValueError,))


READERS = (
    _reader("sound", _sound),
    _reader("evaluates", _on_change(_evaluates)),
    _reader("unpickles", _on_change(_unpickles)),
    _reader("imports", _on_change(_imports)),
    _reader("writes", _on_change(_writes)),
    _reader("loops", _on_change(_loops)),
    _reader("allocates", _on_change(_allocates)),
    _reader("asks_for_much", _on_change(_asks_for_much)),
    _reader("looks_up", _on_change(_looks_up)),
    _reader("dies", _on_change(_dies)),
)
