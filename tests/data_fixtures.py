import io
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest

CLASSES = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"]


def watch_content(num_subjects=6, lengths=(40, 55, 9)):
    """A small file of the same layout: every subject has one recording of each length."""
    rng = np.random.default_rng(0)
    count = num_subjects * len(lengths)
    return {
        "X": [rng.normal(size=(lengths[i % len(lengths)], 6)) for i in range(count)],
        "y": np.arange(count) % 7,
        "subject": np.arange(count) // len(lengths) + 1,
        "side": (np.arange(count) % 2).astype(float),
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y_labels": CLASSES,
    }


def save_object(path, content):
    box = np.empty((), dtype=object)
    box[()] = content
    np.save(path, box, allow_pickle=True)


@pytest.fixture
def install_seglearn(tmp_path, monkeypatch):
    """Puts a `seglearn` package, which fails when imported, in front of any installed one."""

    def install(content=None):
        package = tmp_path / "site" / "seglearn"
        (package / "data").mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        path = package / "data" / "watch_dataset.npy"
        if content is not None:
            save_object(path, content)
        monkeypatch.syspath_prepend(str(package.parent))
        return path

    return install


@pytest.fixture
def watch():
    return watch_content()


class Python2Pickler(pickle._Pickler):
    """Writes the opcodes Python 2 wrote: `str` for text and bytes alike, and numpy's old names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value.encode("latin1") if isinstance(value, str) else value
        if self.proto == 0:
            self.write(b"S" + repr(raw)[1:].encode("latin1") + b"\n")
        elif len(raw) < 256:
            self.write(b"U" + bytes([len(raw)]) + raw)
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


@pytest.fixture
def python2():
    """Pickles as Python 2 did."""

    def dump(content, protocol=2):
        stream = io.BytesIO()
        Python2Pickler(stream, protocol).dump(content)
        return stream.getvalue().replace(b"numpy._core", b"numpy.core")

    return dump
