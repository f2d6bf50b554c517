import hashlib
import zipfile

import pytest

from sft_jax.files.archives import Member, members_sha256, parse_numbers, read_members
from sft_jax.types import DataError

NAMES = ("a.csv", "b.csv")


def folder(tmp_path, files):
    path = tmp_path / "folder"
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def archive(tmp_path, files):
    path = tmp_path / "x-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_a_folder_and_an_archive_give_the_same_files(tmp_path):
    one = read_members(str(folder(tmp_path, {"a.csv": "1\n", "b.csv": "2\n"})), "s", NAMES)
    path = archive(tmp_path, {"x/sets/a.csv": "1\n", "x/b.csv": "2\n", "x/a.csv.txt": "3"})
    two = read_members(str(path), "s", NAMES)
    assert [member.data for member in one.values()] == [b"1\n", b"2\n"]
    assert one["a.csv"].path == str(tmp_path / "folder" / "a.csv")
    assert two["a.csv"] == Member(f"{path}/x/sets/a.csv", b"1\n")
    hashes = [hashlib.sha256(data).hexdigest() for data in (b"1\n", b"2\n")]
    expected = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert members_sha256(one) == members_sha256(two) == expected


def test_paths_are_those_of_the_user(tmp_path, monkeypatch):
    path = archive(tmp_path, {"a.csv": "1", "b.csv": "2"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert set(read_members(f"~/{path.name}", "s", NAMES)) == set(NAMES)
    monkeypatch.chdir(tmp_path)
    assert set(read_members(path.name, "s", NAMES)) == set(NAMES)


def test_lines_of_any_system():
    assert Member("a", b"\xef\xbb\xbfx,y\r\n\r\n 1,2 \n").lines() == ["x,y", "1,2"]
    with pytest.raises(DataError, match=r"a: found UnicodeDecodeError.*expected text in UTF-8"):
        Member("a", b"\xff\xfe").lines()


def test_numbers():
    assert parse_numbers("w", "row 3", ["1", " 2.5", "-3e-1"]) == [1.0, 2.5, -0.3]
    for wrong in ("x", "", "nan", "inf", "?"):
        with pytest.raises(DataError, match=r"^w: row 3: found '.*', expected finite.*; get the f"):
            parse_numbers("w", "row 3", ["1", wrong])


def test_what_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"s\.path: found nothing at '/.*no\.whl', .*a\.csv, b.*; s"
    ):
        read_members(str(tmp_path / "no.whl"), "s.path", NAMES)
    with pytest.raises(DataError, match=r"^s\.path: s\.path: found no path, .*; set s\.path"):
        read_members("", "s.path", NAMES)
    path = folder(tmp_path, {"a.csv": "1"})
    with pytest.raises(DataError, match=rf"^{path}: b\.csv: found a\.csv, expected a file.*; give"):
        read_members(str(path), "s.path", NAMES)
    path = archive(tmp_path, {f"x/{name}.csv": "1" for name in "acdef"})
    with pytest.raises(
        DataError, match=r"whl: b\.csv: found x/a\.csv, x/c\.csv, x/d\.csv, \.\.\.,"
    ):
        read_members(str(path), "s.path", NAMES)


def test_a_name_that_an_archive_holds_twice(tmp_path):
    path = archive(tmp_path, {"x/a.csv": "1", "y/a.csv": "1", "b.csv": "2"})
    with pytest.raises(DataError, match=r"a\.csv: found it in x/a\.csv, y/a\.csv, .*; unpack it"):
        read_members(str(path), "s.path", NAMES)


def test_damaged_archives(tmp_path):
    path = archive(tmp_path, {"a.csv": "1,2,3\n" * 500, "b.csv": "2"})
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"whl: found BadZipFile.*, or a zip archive with a\.csv"):
        read_members(str(path), "s.path", NAMES)
    # Past the header of the first member, within what it holds.
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    with pytest.raises(DataError, match=r"whl: found .*expected a complete a\.csv; .*get it again"):
        read_members(str(path), "s.path", NAMES)
