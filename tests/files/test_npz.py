"""Arrays of others: what a header claims is held against the file, and nothing is unpickled."""

import io
import zipfile

import numpy as np
import pytest

from sft_jax.files import npz
from sft_jax.files.npz import read_npz
from sft_jax.types import DataError


def test_arrays_come_back(tmp_path):
    given = {"a/b": np.arange(6.0).reshape(2, 3), "t": np.array(["x", "yz"]), "n": np.int64(3)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **given)
        found = read_npz(tmp_path / "x.npz")
        assert list(found) == list(given)
        for name, array in given.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == np.asarray(array).dtype


def header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((2**40,)) + bytes(8), r"8 bytes for float32 of shape \(1099511627776,\)"),
        (header((3,)) + bytes(8), r"8 bytes for float32 of shape \(3,\)"),
        (header((-2,)) + bytes(8), r"of shape \(-2,\)"),
        (header((1,)) + bytes(8), r"8 bytes for float32 of shape \(1,\)"),
        (header((2**62,), "'<U0'"), "4611686018427387904 texts of length 0"),
        (header((1,), "'|O'") + b"cos\nsystem\n(S'true'\ntR.", "Python objects, which could run"),
        (b"\x93NUMPY\x09\x00", r"an array of format \(9, 0\)"),
        (header((1,), "'<U1'") + b"\xff\xff\xff\x7f", "2147483647 in place of a character"),
        (header((1,), "'>U1'") + b"\x00\x11\x00\x00", "1114112 in place of a character"),
        (b"no header", "ValueError"),
        (b"", "EOF|ValueError"),
    ],
)
def test_a_header_that_lies_is_named(tmp_path, data, message):
    path = archive(tmp_path / "x.npz", good=header((2,)) + bytes(8), x=data)
    with pytest.raises(DataError, match=rf"x.npz: found no readable .npz .*(?:{message})"):
        read_npz(path)


def test_more_than_there_is_memory_for_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1000), b=np.zeros(1000))
    monkeypatch.setattr(npz, "memory_limit", lambda: 15_999)
    with pytest.raises(DataError, match="16,000 bytes to hold in memory, at most 15,999"):
        read_npz(tmp_path / "x.npz")
    monkeypatch.setattr(npz, "memory_limit", lambda: 16_000)
    assert len(read_npz(tmp_path / "x.npz")) == 2


def test_a_directory_that_claims_more_than_can_be_packed(tmp_path):
    content = io.BytesIO()
    np.savez_compressed(content, a=np.zeros(1000))
    with zipfile.ZipFile(content) as file:
        size = file.infolist()[0].file_size
    lie = content.getvalue().replace(size.to_bytes(4, "little"), (2**31).to_bytes(4, "little"))
    (tmp_path / "x.npz").write_bytes(lie)
    with pytest.raises(DataError, match=r"a.npy: 2147483648 bytes from \d+, more"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -60])
def test_damage_is_named_with_the_remedy(tmp_path, cut):
    np.savez(tmp_path / "x.npz", a=np.arange(50))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"x.npz: found no readable .npz .*; remove it"):
        read_npz(tmp_path / "x.npz", "remove it")


def test_names_are_names_alone(tmp_path):
    array = header((2,)) + bytes(8)
    path = archive(tmp_path / "x.npz", **{"../../outside": array})
    assert list(read_npz(path)) == ["../../outside"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("../../outside.npy", array)
    with pytest.raises(DataError, match="two arrays of one name"):
        read_npz(path)
