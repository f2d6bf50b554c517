"""Text files read from a folder or from a zip archive such as a Python wheel."""

import dataclasses
import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sft_jax.files.errors import check_fits, convert_errors, layout_error, path_remedy
from sft_jax.types import DataError

_REMEDY = "get the file again (docs/data.md)"
# A file is held as bytes, as text, as lines and as the fields of the lines.
_COPIES_IN_MEMORY = 4


@dataclasses.dataclass(frozen=True)
class Member:
    """Content of a file.

    Attributes:
        path: Path of the file; in an archive, the archive's path followed by the member's.
        data: Bytes of the file.
    """

    path: str
    data: bytes

    def lines(self) -> list[str]:
        """Returns the lines that are not empty, decoded from UTF-8.

        Raises:
            DataError: The file is not text.
        """
        with convert_errors(self.path, "text in UTF-8"):
            text = self.data.decode("utf-8-sig")
        return [line for line in map(str.strip, text.splitlines()) if line]


def read_members(path: str, setting: str, names: Sequence[str]) -> dict[str, Member]:
    """Reads files by name from a folder, or from any folder of a zip archive such as a `.whl`.

    Raises:
        DataError: There is no such folder or archive, or a file is missing in it.
    """
    root = Path(path).expanduser()
    if path and root.is_dir():
        return {name: _read_from_folder(root, name) for name in names}
    if path and root.is_file():
        with convert_errors(root, f"a folder, or a zip archive with {', '.join(names)}"):
            archive = zipfile.ZipFile(root)
        with archive:
            return {name: _read_from_archive(archive, root, name) for name in names}
    raise layout_error(
        path or setting,
        setting,
        f"nothing at {str(root.absolute())!r}" if path else "no path",
        f"a folder or an archive with {', '.join(names)}",
        path_remedy(setting),
    )


def members_sha256(members: dict[str, Member]) -> str:
    """Returns the SHA-256 over the hashes of several files, whatever their paths."""
    hashes = [hashlib.sha256(member.data).hexdigest() for member in members.values()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def parse_numbers(path: str, key: str, fields: Sequence[str]) -> list[float]:
    """Parses the fields of a line.

    Raises:
        DataError: A field is not a number, or not finite.
    """
    values = []
    for field in fields:
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise layout_error(path, key, repr(field.strip()), "finite numbers", _REMEDY)
        values.append(value)
    return values


def _read_from_folder(folder: Path, name: str) -> Member:
    path = folder / name
    if not path.is_file():
        raise _missing_error(folder, name, [entry.name for entry in folder.iterdir()])
    _check_size(path.stat().st_size, path)
    return Member(str(path), path.read_bytes())


def _read_from_archive(archive: zipfile.ZipFile, path: Path, name: str) -> Member:
    entries = archive.namelist()
    matches = [entry for entry in entries if entry.rsplit("/", 1)[-1] == name]
    if not matches:
        raise _missing_error(path, name, entries)
    if len(matches) > 1:
        remedy = "unpack it, and give the folder that is meant"
        raise layout_error(path, name, f"it in {', '.join(matches)}", "one such file", remedy)
    info = archive.getinfo(matches[0])
    _check_size(info.file_size, f"{path}/{matches[0]}")
    with convert_errors(path, f"a complete {matches[0]}"), archive.open(info) as stream:
        # A read without a limit could unpack more than the size that was checked.
        return Member(f"{path}/{matches[0]}", stream.read(info.file_size + 1))


def _check_size(num_bytes: int, path: str | Path) -> None:
    check_fits(_COPIES_IN_MEMORY * num_bytes, path, "size", _REMEDY)


def _missing_error(path: Path, name: str, entries: Sequence[str]) -> DataError:
    shown = ", ".join(sorted(entries)[:3]) + (", ..." if len(entries) > 3 else "")
    remedy = "give the folder that holds it, or the archive it came in (docs/data.md)"
    return layout_error(path, name, shown or "an empty folder", "a file of that name", remedy)
