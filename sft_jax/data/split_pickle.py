"""What pickles of the form `{train, valid, test} -> {key: array}` share: reading and checking."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sft_jax.data.records import SPLITS, Contents
from sft_jax.data.sequence_table import SequenceTable, modality_info
from sft_jax.data.splits import SPLIT_NAMES
from sft_jax.files.errors import layout_error
from sft_jax.files.mapped_pickles import map_pickle
from sft_jax.files.rows import Rows, as_rows, describe, text

# CMU-MOSI and CMU-MOSEI: strongly negative to strongly positive.
SENTIMENTS = tuple(float(value) for value in range(-3, 4))

_GET_AGAIN = "get the file again (docs/data.md says where)"


def read_splits(path: Path, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The three splits, of which each has `keys`; bytes for names become text.

    Raises:
        DataError: the file cannot be read, or a split or a key is missing.
    """
    content = map_pickle(path)
    splits = _entries(path, "file", _with_split_names(path, content), SPLITS)
    return {split: _entries(path, split, splits[split], keys) for split in SPLITS}


def _with_split_names(path: Path, content: Any) -> Any:
    """`content` with `train`, `valid` and `test` for other names of splits, such as `dev`."""
    if not isinstance(content, Mapping):
        return content
    renamed: dict[Any, Any] = {}
    for key, entries in content.items():
        name = text(key) if isinstance(key, bytes) else key
        name = SPLIT_NAMES.get(name.lower(), name) if isinstance(name, str) else name
        if name in renamed and name in SPLITS:
            keys = ", ".join(map(str, content))
            raise layout_error(path, "file", keys, f"one split {name}", "remove one of them")
        renamed[name] = entries
    return renamed


def _entries(path: Path, key: str, given: Any, names: Sequence[str]) -> dict[str, Any]:
    wanted = f"a mapping with {', '.join(names)}"
    if not isinstance(given, Mapping):
        raise layout_error(path, key, describe(given), wanted, _GET_AGAIN)
    found = {text(name) if isinstance(name, bytes) else name: given[name] for name in given}
    missing = [name for name in names if name not in found]
    if missing:
        keys = ", ".join(map(str, found)) or "nothing"
        what = f"{keys} without {', '.join(missing)}"
        raise layout_error(path, key, what, wanted, f"check data.source, or {_GET_AGAIN}")
    return found


def features(path: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Rows]:
    """Modality `name` of every split: numbers of shape `[n, t, f]`, `t` and `f` alike in all.

    Raises:
        DataError: it is anything else, or the training split is empty.
    """
    found: dict[str, Rows] = {}
    for split, entries in splits.items():
        key = f"{split}/{name}"
        values = as_rows(entries[name])
        wanted = "numbers of shape [n, t, f]"
        if values is None or values.dtype.kind not in "fiu" or len(values.shape) != 3:
            what = describe(entries[name] if values is None else values)
            remedy = "save it as one array of numbers, padded to the longest sample"
            raise layout_error(path, key, what, wanted, remedy)
        if 0 in values.shape[1:] or (split == "train" and not len(values)):
            remedy = f"training needs at least one sample; {_GET_AGAIN}"
            raise layout_error(path, key, describe(values), f"{wanted}, not empty", remedy)
        first = found.setdefault("train", values)
        if values.shape[1:] != first.shape[1:]:
            wanted = f"[n, {first.shape[1]}, {first.shape[2]}] as in train"
            remedy = "pad all splits to one length"
            raise layout_error(path, key, describe(values), wanted, remedy)
        found[split] = values
    return found


def column(path: Path, key: str, given: Any, shape: tuple[int, ...], kinds: str) -> np.ndarray:
    """`given` as an array in memory of this shape and of a type whose kind is in `kinds`.

    Raises:
        DataError: it is anything else.
    """
    values = as_rows(given)
    if values is None or tuple(values.shape) != shape or values.dtype.kind not in kinds:
        names = {"fiu": "numbers", "iu": "whole numbers"}
        what = describe(given if values is None else values)
        remedy = f"all entries of a split have one first axis; {_GET_AGAIN}"
        raise layout_error(path, key, what, f"{names[kinds]} of shape {shape}", remedy)
    return values[:]


def sentiments(path: Path, key: str, values: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Classes 0 to 6 of sentiments in [-3, 3], rounded half to even.

    Raises:
        DataError: a value is NaN or lies outside.
    """
    wrong = ~((values >= SENTIMENTS[0]) & (values <= SENTIMENTS[-1]))
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"{values[row]} for sample {row} ({np.count_nonzero(wrong)} such samples)"
        remedy = "remove these samples, or bring labels to this scale"
        raise layout_error(path, key, what, "sentiments from -3 to 3", remedy)
    return (np.rint(values) - SENTIMENTS[0]).astype(np.int64)


def names(path: Path, key: str, given: Any, size: int) -> list[tuple[str, ...]]:
    """The parts of the name of every sample; one that is not cut into parts has a single one.

    Raises:
        DataError: there are not `size`, or they are not text or numbers.
    """
    rows = given if isinstance(given, list | tuple) else as_rows(given)
    if rows is None or len(getattr(rows, "shape", (0,))) not in (1, 2):
        raise layout_error(path, key, describe(given), f"{size} names", "correct or remove it")
    entries = list(rows[:])
    parts = [
        tuple(map(text, entry)) if isinstance(entry, list | tuple | np.ndarray) else (text(entry),)
        for entry in entries
    ]
    if len(parts) != size or not all(map("".join, parts)):
        what = f"{len(parts)} names, {sum(not ''.join(entry) for entry in parts)} of them empty"
        wanted = f"{size}, one for every sample"
        raise layout_error(path, key, what, wanted, f"correct or remove the entry; {_GET_AGAIN}")
    return parts


def unique_names(tables: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], int]:
    """Names of all splits, repeated ones numbered, and how many these were."""
    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    repeated = 0
    for split, ids in tables.items():
        result[split] = []
        for name in ids:
            chosen, count = name, 1
            while chosen in seen:
                count += 1
                chosen = f"{name}#{count}"
            repeated += chosen != name
            seen.add(chosen)
            result[split].append(chosen)
    return result, repeated


def assemble(
    path: Path,
    tables: Mapping[str, SequenceTable],
    class_names: Sequence[str],
    class_values: Sequence[float],
) -> Contents:
    """All splits that have records, with names made unique and repairs added up.

    Raises:
        DataError: no sample of the training split has anything real.
    """
    if not len(tables["train"]):
        what = f"{tables['train'].num_empty} samples without a real step in any modality"
        remedy = f"training needs at least one sample; {_GET_AGAIN}"
        raise layout_error(path, "train", what, "features that are not all 0", remedy)
    ids, repeated = unique_names({split: table.id for split, table in tables.items()})
    repairs: dict[str, int] = {}
    for table in tables.values():
        for what, count in table.repairs.items():
            repairs[what] = repairs.get(what, 0) + count
    others = {
        "samples without a real step in any modality, left out": sum(
            table.num_empty for table in tables.values()
        ),
        "names of samples that came again, numbered": repeated,
    }
    repairs |= {what: count for what, count in others.items() if count}
    return Contents(
        modalities=tuple(modality_info(*item) for item in tables["train"].inputs.items()),
        class_names=tuple(class_names),
        class_values=tuple(class_values),
        splits={
            split: dataclasses.replace(table, id=ids[split])
            for split, table in tables.items()
            if len(table)
        },
        repairs=repairs,
    )
