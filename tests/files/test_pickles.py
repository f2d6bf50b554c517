import io
import os
import pickle

import numpy as np
import pytest

from sft_jax.files.mapped_pickles import map_pickle
from sft_jax.files.pickles import load_npy_object, load_pickle
from sft_jax.types import DataError


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def save(path, content):
    box = np.empty((), dtype=object)
    box[()] = content
    np.save(path, box, allow_pickle=True)
    return path


CONTENT = {
    "list": [np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]), np.array([1, "x"], dtype=object)],
    "numbers": (1, 2.5, None, True, np.float32(3.5), np.int64(-4)),
    "sets": {1, 2},
    "text": "é",
    "bytes": b"\x00\xff",
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "parts": np.array([((1.0, 2.0),)], dtype=[("p", ">f4", (2,))]),
    "texts": np.array([b"a\x00", b"bcd"]),
    "flags": np.array([[True, False]]),
    "empty": np.zeros((0, 3)),
    "record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
}


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_and_containers_survive_every_protocol(protocol):
    stream = io.BytesIO(pickle.dumps(CONTENT, protocol=protocol))
    assert_same(load_pickle(stream, "x"), CONTENT)


def test_reads_what_np_save_wrote(tmp_path):
    path = save(tmp_path / "x.npy", CONTENT)
    array = load_npy_object(path)
    assert array.shape == ()
    assert_same(array.item(), CONTENT)


def test_reads_numpy_1_names_and_python_2_text():
    stream = pickle.dumps({"a": np.arange(3)}, protocol=2)
    old = stream.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != stream
    np.testing.assert_array_equal(load_pickle(io.BytesIO(old), "x")["a"], [0, 1, 2])
    # SHORT_BINSTRING is how Python 2 wrote `str`.
    assert load_pickle(io.BytesIO(b"U\x02a\xe9."), "x") == "aé"


def test_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    target = tmp_path / "ran"
    path = save(tmp_path / "evil.npy", {"X": RunsCode(target)})
    with pytest.raises(DataError, match=rf"evil\.npy.*{os.system.__module__}\.system"):
        load_npy_object(path)
    assert not target.exists()
    # The same file through numpy's own reader shows that the payload was live.
    np.load(path, allow_pickle=True)
    assert target.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy\nload\n.",
        b"cnumpy.lib.npyio\nload\n.",
        b"cos\nsystem\n.",
        b"\x8c\x05posix\x8c\x06system\x93.",
    ],
)
def test_other_globals_are_named_and_refused(call):
    with pytest.raises(DataError, match=r"data\.pkl: the pickle asks for \w+[\w.]*\.\w+, expected"):
        load_pickle(io.BytesIO(call), "data.pkl")


def test_array_class_cannot_be_called_with_a_buffer():
    # ndarray(shape, dtype=object, buffer=...) would turn these bytes into a pointer.
    call = b"cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(VO8\ntRC\x08AAAAAAAAtR."
    with pytest.raises(DataError, match="damaged"):
        load_pickle(io.BytesIO(call), "x")
    object_scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRC\x08AAAAAAAAtR."
    with pytest.raises(DataError, match="scalar may not"):
        load_pickle(io.BytesIO(object_scalar), "x")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("size", [4, 5000])
def test_a_dtype_that_hides_its_objects_is_refused(tmp_path, protocol, size):
    # Its state says that it holds none; numpy would take the bytes for pointers.
    for content in (np.zeros(size), np.float64(0)):
        stream = pickle.dumps(content, protocol=protocol)
        forged = stream.replace(b"f8", b"O8")
        assert forged != stream
        with pytest.raises(DataError, match="damaged"):
            load_pickle(io.BytesIO(forged), "x")
        (tmp_path / "x.pkl").write_bytes(forged)
        with pytest.raises(DataError, match="damaged"):
            map_pickle(tmp_path / "x.pkl")


def test_every_truncation_is_a_data_error(tmp_path):
    path = save(tmp_path / "x.npy", {"a": np.arange(5)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.npy"):
            load_npy_object(path)


def test_wrong_kinds_of_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_npy_object(tmp_path / "absent.npy")
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(DataError, match=r"found dtype int64, expected object"):
        load_npy_object(tmp_path / "plain.npy")
    (tmp_path / "text.npy").write_text("hello, this is not an array")
    with pytest.raises(DataError, match=r"expected an \.npy header"):
        load_npy_object(tmp_path / "text.npy")


def test_header_and_content_must_agree(tmp_path):
    path = save(tmp_path / "x.npy", 1)
    header = path.read_bytes()[:128]
    path.write_bytes(header + pickle.dumps(np.array([1, None], dtype=object)))
    with pytest.raises(DataError, match=r"shape \(2,\) behind a header of shape \(\)"):
        load_npy_object(path)
    path.write_bytes(header + pickle.dumps([1]))
    with pytest.raises(DataError, match="found list"):
        load_npy_object(path)
