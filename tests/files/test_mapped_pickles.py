import io
import os
import pickle

import numpy as np
import pytest

from sft_jax.data.sequence_table import clean
from sft_jax.files.mapped_pickles import MIN_PAYLOAD_BYTES, map_pickle
from sft_jax.files.pickles import load_pickle
from sft_jax.files.rows import FileArray, ListArray, as_rows
from sft_jax.types import DataError


def same(found, expected):
    """Asserts equality, reading arrays that stayed in the file."""
    if isinstance(expected, np.ndarray) and expected.dtype != object:
        assert (tuple(found.shape), found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found[()] if not expected.shape else found[:], expected)
        return
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert found.shape == expected.shape
        for pair in zip(found.reshape(-1), expected.reshape(-1), strict=True):
            same(*pair)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            same(*pair)
    else:
        assert found == expected


def content():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(40, 7, 5))
    boxed = np.empty((), object)
    boxed[()] = rng.normal(size=(900,))
    return {
        "large": large,
        "again": large,
        "fortran": np.asfortranarray(large.astype(np.float32)),
        "big-endian": large.astype(">f4"),
        "small": np.arange(5),
        "inside": [(large[:20].copy(), "x"), {"deep": large[1:].astype(np.float32)}],
        "objects": np.array([b"a", "b", None, large[0]], dtype=object),
        "boxed": boxed,
        "text": "é" * MIN_PAYLOAD_BYTES,
        "bytes": b"\xe9\x00" * MIN_PAYLOAD_BYTES,
        "number": 2.5,
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_gives_what_pickle_gives(tmp_path, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content(), protocol=protocol))
    found = map_pickle(path)
    same(found, content())
    # Under protocols 1 and 2 Python 3 writes bytes as text; from 3 on they lie in the file.
    assert isinstance(found["large"], FileArray) == (protocol >= 3)
    assert isinstance(found["small"], np.ndarray)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python_2_pickles(tmp_path, protocol, python2):
    path = tmp_path / "x.pkl"
    # There bytes and text are one type, which is read as text.
    expected = content() | {
        "bytes": "é\x00" * MIN_PAYLOAD_BYTES,
        "objects": np.array(["a", "b"], object),
    }
    written = expected | {"objects": np.array([b"a", b"b"], object)}
    path.write_bytes(python2(written, protocol))
    assert b"numpy.core.multiarray" in path.read_bytes()
    found = map_pickle(path)
    same(found, expected)
    assert isinstance(found["large"], FileArray) == (protocol > 0)
    # The whole-file reader agrees.
    same(load_pickle(io.BytesIO(path.read_bytes()), "x"), expected)


def test_rows_of_a_file_array(tmp_path):
    path = tmp_path / "x.pkl"
    values = np.arange(4000.0).reshape(40, 10, 10)
    path.write_bytes(pickle.dumps({"c": values, "f": np.asfortranarray(values)}, protocol=4))
    for array in map_pickle(path).values():
        assert (array.shape, array.dtype, len(array)) == ((40, 10, 10), values.dtype, 40)
        np.testing.assert_array_equal(array[7], values[7])
        np.testing.assert_array_equal(array[30:50], values[30:])
        assert type(array[3:5]) is np.ndarray
        assert array[3:5].flags.owndata


def test_lists_of_arrays_are_seen_as_one_array(tmp_path):
    path = tmp_path / "x.pkl"
    values = np.arange(4000.0).reshape(4, 10, 100)
    path.write_bytes(pickle.dumps(list(values), protocol=4))
    rows = as_rows(map_pickle(path))
    assert isinstance(rows, ListArray)
    assert (rows.shape, rows.dtype, len(rows)) == (values.shape, values.dtype, 4)
    np.testing.assert_array_equal(rows[2], values[2])
    np.testing.assert_array_equal(rows[1:3], values[1:3])
    np.testing.assert_array_equal(as_rows([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    assert as_rows([values[0], values[1, :5]]) is None
    assert as_rows([[1, 2], [3]]) is None
    assert as_rows("text") is None


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_is_refused_by_name_and_does_not_run(tmp_path):
    path, target = tmp_path / "evil.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"a": np.ones(MIN_PAYLOAD_BYTES), "b": RunsCode(target)}))
    with pytest.raises(DataError, match=rf"evil\.pkl.*{os.system.__module__}\.system.*trust"):
        map_pickle(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()


ARRAY = pickle.dumps(np.zeros(MIN_PAYLOAD_BYTES // 8), protocol=4)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", "ValueError"),
        (b"hello, this is text\n" * 9, "UnpicklingError"),
        (b"J\x00\x00\x00\x00Q.", "outside the file"),
        (b"P0\n.", "outside the file"),
        (ARRAY[:-900], "in the middle of the pickle"),
        (ARRAY[:-1], "in the middle of the pickle"),
        (b"T\xff\xff\xff\xff.", "in the middle of the pickle"),
        (ARRAY.replace(b"f8", b"f4"), "4096 bytes for an array of float32"),
        (ARRAY.replace(b"f8", b"O8"), "an array of object may not be made of"),
        (b"\x80\x04]" + b"\x94h\x00a" * 2 + b"0.", "UnpicklingError"),
    ],
)
def test_damaged_files_are_data_errors(tmp_path, stream, words):
    path = tmp_path / "x.pkl"
    path.write_bytes(stream)
    with pytest.raises(
        DataError, match=r"x\.pkl: found .*expected a complete pickle; .*again"
    ) as caught:
        map_pickle(path)
    assert words in str(caught.value)


def test_every_truncation_is_a_data_error(tmp_path):
    path = tmp_path / "x.pkl"
    whole = pickle.dumps({"a": np.arange(5), "b": ["x", 2.5]}, protocol=4)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.pkl"):
            map_pickle(path)


def test_a_list_may_hold_itself(tmp_path):
    path = tmp_path / "x.pkl"
    loop = [np.zeros(MIN_PAYLOAD_BYTES)]
    loop.append(loop)
    path.write_bytes(pickle.dumps(loop, protocol=4))
    found = map_pickle(path)
    assert found[1] is found
    assert isinstance(found[0], FileArray)


def test_values_that_are_not_finite_by_hand():
    values = np.array([[[1.0, -np.inf], [np.inf, np.nan]], [[np.nan, 2.0], [-1e300, 3.0]]])
    cleaned, counts = clean(values)
    assert cleaned.dtype == np.float32
    np.testing.assert_array_equal(cleaned, [[[1, 0], [0, 0]], [[0, 2], [0, 3]]])
    assert counts == {"-inf": 2, "inf": 1, "NaN": 2}
    # Of steps that are not real, nothing is counted, and everything is mended.
    cleaned, counts = clean(values, np.array([[True, False], [False, False]]))
    np.testing.assert_array_equal(cleaned, [[[1, 0], [0, 0]], [[0, 2], [0, 3]]])
    assert counts == {"-inf": 1}
    assert clean(np.ones((1, 2, 3)))[1] == {}
