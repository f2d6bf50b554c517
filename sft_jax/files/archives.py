"""Text files that lie in a folder, or inside an archive such as a Python wheel."""

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sft_jax.files.errors import check_fits, explained, layout_error
from sft_jax.types import DataError

_AGAIN = "get the file again (docs/data.md)"
# A file as it is, as text, as lines and as the fields of these.
_TEXT_COPIES = 4


@dataclasses.dataclass(frozen=True)
class Member:
    """A file that has been read.

    Attributes:
        where: its path; inside an archive, the archive's and its own.
        data: its bytes.
    """

    where: str
    data: bytes

    def lines(self) -> list[str]:
        """Its lines, as UTF-8, without those that are empty.

        Raises:
            DataError: it is not text.
        """
        whole = explained(lambda: self.data.decode("utf-8-sig"), self.where, "text in UTF-8")
        return [line for line in map(str.strip, whole.splitlines()) if line]


def read_members(path: str, setting: str, names: Sequence[str]) -> dict[str, Member]:
    """Reads files by name, in whatever folder of an archive they lie.

    Args:
        path: a folder, or a zip archive (`.whl` is one); `~` is expanded.
        setting: where the path was given.
        names: of the files.

    Raises:
        DataError: there is no such folder or archive, or no such file in it.
    """
    found = Path(path).expanduser()
    if path and found.is_dir():
        return {name: _in_folder(found, name) for name in names}
    if path and found.is_file():
        return _in_archive(found, names)
    raise layout_error(
        path or setting,
        setting,
        f"nothing at {str(found.absolute())!r}" if path else "no path",
        f"a folder or an archive with {', '.join(names)}",
        f"set {setting}, relative to the working directory or absolute (docs/data.md)",
    )


def members_sha256(members: dict[str, Member]) -> str:
    """SHA-256 over what files hold, wherever they lie."""
    hashes = [hashlib.sha256(member.data).hexdigest() for member in members.values()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def numbers(where: str, key: str, fields: Sequence[str]) -> list[float]:
    """What the fields of a line say.

    Raises:
        DataError: one is not a number, or not finite.
    """
    values = list(map(_number, fields))
    for field, value in zip(fields, values, strict=True):
        if not math.isfinite(value):
            raise layout_error(where, key, repr(field.strip()), "finite numbers", _AGAIN)
    return values


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan


def _in_folder(folder: Path, name: str) -> Member:
    path = folder / name
    if not path.is_file():
        raise _missing(folder, name, [entry.name for entry in folder.iterdir()])
    _check_size(path.stat().st_size, path)
    return Member(str(path), path.read_bytes())


def _in_archive(path: Path, names: Sequence[str]) -> dict[str, Member]:
    what = f"a folder, or a zip archive with {', '.join(names)}"
    with explained(lambda: zipfile.ZipFile(path), path, what) as archive:
        return {name: _extract(archive, path, name) for name in names}


def _extract(archive: zipfile.ZipFile, path: Path, name: str) -> Member:
    entries = archive.namelist()
    found = [entry for entry in entries if entry.rsplit("/", 1)[-1] == name]
    if not found:
        raise _missing(path, name, entries)
    if len(found) > 1:
        remedy = "unpack it, and give the folder that is meant"
        raise layout_error(path, name, f"it in {', '.join(found)}", "one file of that name", remedy)
    info = archive.getinfo(found[0])
    _check_size(info.file_size, f"{path}/{found[0]}")

    def read() -> bytes:
        with archive.open(info) as stream:
            # Asked for all there is, zipfile would unpack more than the size that was looked at.
            return stream.read(info.file_size + 1)

    return Member(f"{path}/{found[0]}", explained(read, path, f"a whole {found[0]}"))


def _check_size(num_bytes: int, where: str | Path) -> None:
    check_fits(_TEXT_COPIES * num_bytes, where, "size", _AGAIN)


def _missing(path: Path, name: str, entries: Sequence[str]) -> DataError:
    shown = ", ".join(sorted(entries)[:3]) + (", ..." if len(entries) > 3 else "")
    remedy = "give the folder that holds it, or the archive it came in (docs/data.md)"
    return layout_error(path, name, shown or "nothing in it", "a file of that name", remedy)
