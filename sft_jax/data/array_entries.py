"""Entries of a user's own arrays: loading, conversion, and choice of the modalities."""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sft_jax.files import Layout, check_fits, layout_error, load_npz, map_npy, path_remedy
from sft_jax.types import DataError

COLUMNS = ("label", "id", "group", "split")
# Columns as well, unless they are sequences `[n, t, f]`.
_TARGETS = ("labels", "value", "weight")
MAX_MODALITIES = 8
_OPTION = "data.options.modalities"
# Number of samples that are converted at a time.
CHUNK = 1024


class SourceFiles(NamedTuple):
    """Path of a source, and for a directory the file of every entry."""

    root: Path
    entries: dict[str, Path]


def source_files(path: str | os.PathLike, setting: str = "") -> SourceFiles:
    """Returns an `.npz` file, or a directory and its `.npy` files by entry (`rgb`, `mask/rgb`).

    Raises:
        DataError: There is neither. The message names `setting`, if a setting holds the path.
    """
    text = os.fspath(path)
    root = Path(text).expanduser()
    if text and root.is_dir():
        entries = {
            file.relative_to(root).with_suffix("").as_posix(): file
            for file in sorted(root.rglob("*.npy"))
            if file.is_file()
        }
        return SourceFiles(root, entries)
    if root.is_file() and root.suffix == ".npz":
        return SourceFiles(root, {})
    found = "a file of another kind" if root.is_file() else f"nothing at {text!r}"
    expected = "an .npz file or a directory of .npy files"
    remedy = path_remedy(setting) if setting else "check the path"
    raise layout_error(text or setting or "(empty path)", "path", found, expected, remedy)


def load_entries(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Loads all arrays of a source by entry; files of a directory are memory-mapped.

    Raises:
        DataError: The source does not exist, is damaged, holds Python objects, or does not fit in
            memory.
    """
    root, files = source_files(path)
    try:
        if root.is_file():
            return load_npz(root, functools.partial(_check_archive, root))
        arrays = {key: map_npy(file) for key, file in files.items()}
    except DataError:
        raise
    # The readers of zip files and headers raise exceptions of many types for damage.
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        expected = "complete arrays of numbers or text, not Python objects"
        remedy = "save it again with np.savez or np.save; text as np.array(names, dtype=str)"
        raise layout_error(path, "file", found, expected, remedy) from error
    needed = _float_bytes({key: (values.shape, values.dtype) for key, values in arrays.items()})
    check_fits(needed, root, "folder", "give fewer samples")
    return arrays


def as_array(values: Any, key: str, where: str) -> np.ndarray:
    """Converts values to an array of numbers, booleans or text.

    Lists, JAX arrays and pandas columns are converted. Python objects become numbers or text if all
    of them are.

    Raises:
        DataError: NumPy cannot convert the values to such an array. The message names the entry
            `key` and the file `where`.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufUS":
        return values
    expected = "an array of numbers or text, or nested lists of equal lengths"
    remedy = "pad sequences to one length with length/<m>, and fill in what is missing"
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        found = f"{type(values).__name__} ({error})"
        raise layout_error(where, key, found, expected, remedy) from error
    if array.dtype.kind == "O":
        array = _convert_objects(array)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize <= 2:
        # Dtypes of ml_dtypes, such as bfloat16, have no kind of their own in NumPy.
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufUS":
        found = f"{type(values).__name__} of {array.dtype}"
        raise layout_error(where, key, found, expected, remedy)
    return array


def decode_names(values: np.ndarray) -> list[str]:
    """Converts text, bytes or whole numbers to text; raises `UnicodeError` for other than UTF-8."""
    names = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    for name in names:
        name.encode()  # fails for unpaired surrogates, which cannot be stored
    return names


def _convert_objects(array: np.ndarray) -> np.ndarray:
    """Converts an array of objects to numbers or text; returns it unchanged if they are mixed.

    NumPy alone would convert a number (or NaN) beside text to text.
    """
    flat = array.reshape(-1).tolist()
    for kinds in (str, bytes, bool | np.bool_, int | np.integer, int | float | np.number):
        if flat and all(isinstance(value, kinds) for value in flat):
            return np.asarray(flat).reshape(array.shape)
    return array


def _check_archive(path: Path, layouts: Mapping[str, Layout]):
    # Memory of the stored arrays, their float32 copies, the masks, and the temporary arrays of the
    # largest conversion. The measured peak agrees within 1 % for 200 MB of float64, float32 or ids.
    stored = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layouts.values())
    masks = sum(math.prod(shape[:2]) for shape, _ in layouts.values())
    temporary = max(map(_temporary_bytes, layouts.values()), default=0)
    needed = stored + _float_bytes(layouts) + masks + temporary
    check_fits(needed, path, "file", "give fewer samples, or a folder of .npy files")


def _temporary_bytes(layout: Layout) -> int:
    """Returns the temporary memory of a conversion: two booleans per value of a chunk, or ids."""
    shape, dtype = layout
    if len(shape) == 3:
        return 2 * min(shape[0], CHUNK) * math.prod(shape[1:])
    return math.prod(shape) * dtype.itemsize


def _float_bytes(layouts: Mapping[str, Layout]) -> int:
    """Returns the size of all arrays as float32."""
    return 4 * sum(math.prod(shape) for shape, _ in layouts.values())


def choose_modalities(
    entries: Mapping[str, np.ndarray], requested: Sequence[str], where: str
) -> tuple[list[str], dict[str, str]]:
    """Chooses the modalities among the entries of a file.

    Those that are requested are taken in their order; if none is, all that look like sequences.

    Returns:
        Names of the modalities, and the reason for every other entry.

    Raises:
        DataError: There is no modality, too many, or a requested one is missing.
    """
    candidates = _candidates(entries)
    _check_masks(entries, candidates, where)
    absent = [name for name in requested if name not in candidates]
    if absent:
        expected = f"names out of {', '.join(candidates) or 'none'}"
        remedy = f"correct {_OPTION}, or add the array"
        raise layout_error(where, _OPTION, ", ".join(absent), expected, remedy)
    if requested:
        unused = [name for name in candidates if name not in requested]
        left_out = dict.fromkeys(unused, "not one of those asked for")
        names = list(requested)
    else:
        reasons = {name: _reason_not_sequence(entries, name) for name in candidates}
        left_out = {name: reason for name, reason in reasons.items() if reason}
        names = [name for name in candidates if name not in left_out]
    if not 1 <= len(names) <= MAX_MODALITIES:
        others = "".join(f"; left out {name}: {reason}" for name, reason in left_out.items())
        found = f"{len(names)} in entries {', '.join(entries) or 'none'}{others}"
        expected = f"1 to {MAX_MODALITIES} arrays named after their modality"
        remedy = f"add arrays, or name those to take in {_OPTION}"
        raise layout_error(where, "modalities", found, expected, remedy)
    return names, left_out


def find_sequences(entries: Mapping[str, np.ndarray]) -> set[str]:
    """Returns the names of the entries that look like modalities."""
    return {key for key in _candidates(entries) if not _reason_not_sequence(entries, key)}


def is_column(entries: Mapping[str, np.ndarray], name: str) -> bool:
    """Returns whether there is an entry with one target, weight or name for each sample."""
    return name in entries and (name in COLUMNS or entries[name].ndim < 3)


def _candidates(entries: Mapping[str, np.ndarray]) -> list[str]:
    columns = [name for name in (*COLUMNS, *_TARGETS) if is_column(entries, name)]
    return [key for key in entries if key not in columns and "/" not in key]


def _check_masks(entries: Mapping[str, np.ndarray], candidates: Sequence[str], where: str) -> None:
    allowed = {f"{kind}/{name}" for kind in ("mask", "length") for name in candidates}
    for key in entries:
        if "/" in key and key not in allowed:
            expected = f"mask/<m> or length/<m> with <m> one of {', '.join(candidates)}"
            raise layout_error(where, key, "an entry of this name", expected, "rename or remove it")


def _reason_not_sequence(entries: Mapping[str, np.ndarray], name: str) -> str:
    """Returns why an entry does not look like sequences; empty if it does."""
    values = entries[name]
    hint = f"(to take it, name it in {_OPTION})"
    if f"mask/{name}" in entries or f"length/{name}" in entries:
        return ""  # the file declares it a sequence
    if values.ndim == 0:
        return "a single value"
    if values.ndim == 1:
        return "one value for each sample"
    if values.dtype.kind not in "biu" or 0 in values.shape:
        return ""
    if is_one_number(values):
        return f"one whole number for each sample {hint}"
    if values.ndim == 2 and values.min() >= 0 and values.max() <= 1:
        return f"a table of 0 and 1, such as one-hot labels {hint}"
    return ""


def is_one_number(values: np.ndarray) -> bool:
    """Returns whether every sample is a single time step with a single whole number."""
    if values.ndim not in (2, 3) or values[:1].size != 1:
        return False
    return values.dtype.kind in "biu" or bool(np.all(values == np.floor(values)))
