"""Base of the sources that are pickles of the form `{train, valid, test} -> {key: array}`."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import SPLITS, Contents
from sft_jax.data.sequence_table import SequenceTable, modality_info, scan
from sft_jax.data.splits import SPLIT_ALIASES
from sft_jax.files import (
    Rows,
    as_rows,
    describe_value,
    existing_file,
    file_sha256,
    layout_error,
    map_pickle,
    to_text,
)

MODALITIES = ("vision", "audio", "text")
# Classes of CMU-MOSI and CMU-MOSEI: strongly negative to strongly positive.
SENTIMENTS = tuple(float(value) for value in range(-3, 4))
SENTIMENT_NAMES = tuple(f"{value:g}" for value in SENTIMENTS)

_REMEDY = "get the file again (docs/data.md says where)"


class SplitPickleBuilder(SourceBuilder, skip_registration=True):
    """Source that is one pickle, at `options.path`.

    Attributes:
        file_name: Usual name of the file, for messages.
    """

    file_name: str

    def file(self) -> Path:
        """Returns the path of the pickle; raises `DataError` if it does not exist."""
        expected = f"a pickle such as {self.file_name}"
        return existing_file(self.options.path, "data.options.path", expected)

    def source_sha256(self) -> str:
        """Returns the SHA-256 of the file."""
        return file_sha256(self.file())


def read_splits(path: Path, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the three splits with the required keys; keys that are bytes become text.

    Raises:
        DataError: The file cannot be read, or a split or a key is missing.
    """
    splits = _check_keys(path, "file", _rename_splits(path, map_pickle(path)), SPLITS)
    return {split: _check_keys(path, split, splits[split], keys) for split in SPLITS}


def _rename_splits(path: Path, content: Any) -> Any:
    """Renames splits such as `dev` to `train`, `valid` and `test`."""
    if not isinstance(content, Mapping):
        return content
    renamed: dict[Any, Any] = {}
    for key, entries in content.items():
        name = to_text(key) if isinstance(key, bytes) else key
        name = SPLIT_ALIASES.get(name.lower(), name) if isinstance(name, str) else name
        if name in renamed and name in SPLITS:
            keys = ", ".join(map(str, content))
            raise layout_error(path, "file", keys, f"one split {name}", "remove one of them")
        renamed[name] = entries
    return renamed


def _check_keys(path: Path, key: str, value: Any, required: Sequence[str]) -> dict[str, Any]:
    expected = f"a mapping with {', '.join(required)}"
    if not isinstance(value, Mapping):
        raise layout_error(path, key, describe_value(value), expected, _REMEDY)
    entries = {to_text(name) if isinstance(name, bytes) else name: value[name] for name in value}
    missing = [name for name in required if name not in entries]
    if missing:
        keys = ", ".join(map(str, entries)) or "nothing"
        found = f"{keys} without {', '.join(missing)}"
        raise layout_error(path, key, found, expected, f"check data.source, or {_REMEDY}")
    return entries


def read_features(
    path: Path, splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Rows]]:
    """Returns `{split: {m: [n, t, f]}}`, with the same `t` and `f` in all splits.

    Raises:
        DataError: Features have another shape or dtype, modalities of a split differ in the number
            of samples, or the training split is empty.
    """
    features: dict[str, dict[str, Rows]] = {}
    for split, entries in splits.items():
        features[split] = {}
        for name in MODALITIES:
            key = f"{split}/{name}"
            values = _check_features(path, key, entries[name], allow_empty=split != "train")
            first = features["train"].get(name, values)
            if values.shape[1:] != first.shape[1:]:
                expected = f"[n, {first.shape[1]}, {first.shape[2]}] as in train"
                remedy = "pad all splits to one length"
                raise layout_error(path, key, describe_value(values), expected, remedy)
            features[split][name] = values
            size = len(features[split][MODALITIES[0]])
            if len(values) != size:
                expected = f"{size}, as {split}/{MODALITIES[0]} has"
                remedy = "all modalities of a split have one first axis; get the file again"
                raise layout_error(path, key, f"{len(values)} samples", expected, remedy)
    return features


def _check_features(path: Path, key: str, value: Any, allow_empty: bool) -> Rows:
    rows = as_rows(value)
    expected = "numbers of shape [n, t, f]"
    if rows is None or rows.dtype.kind not in "fiu" or len(rows.shape) != 3:
        found = describe_value(value if rows is None else rows)
        remedy = "save it as one array of numbers, padded to the longest sample"
        raise layout_error(path, key, found, expected, remedy)
    if 0 in rows.shape[1:] or not (len(rows) or allow_empty):
        remedy = f"training needs at least one sample; {_REMEDY}"
        raise layout_error(path, key, describe_value(rows), f"{expected}, not empty", remedy)
    return rows


def read_column(path: Path, key: str, value: Any, shape: tuple[int, ...], kinds: str) -> np.ndarray:
    """Loads an entry that must have a shape and a dtype whose kind is in `kinds`.

    Raises:
        DataError: The entry is anything else.
    """
    rows = as_rows(value)
    if rows is None or tuple(rows.shape) != shape or rows.dtype.kind not in kinds:
        names = {"fiu": "numbers", "iu": "whole numbers"}
        found = describe_value(value if rows is None else rows)
        remedy = f"all entries of a split have one first axis; {_REMEDY}"
        raise layout_error(path, key, found, f"{names[kinds]} of shape {shape}", remedy)
    return rows[:]


def sentiment_classes(path: Path, key: str, values: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Converts sentiments in [-3, 3] to classes 0 to 6, rounding half to even.

    Raises:
        DataError: A value is NaN or out of range.
    """
    wrong = ~((values >= SENTIMENTS[0]) & (values <= SENTIMENTS[-1]))
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"{values[row]} for sample {row} ({np.count_nonzero(wrong)} such samples)"
        remedy = "remove these samples, or bring labels to this scale"
        raise layout_error(path, key, found, "sentiments from -3 to 3", remedy)
    return (np.rint(values) - SENTIMENTS[0]).astype(np.int64)


def read_names(path: Path, key: str, value: Any, size: int) -> list[tuple[str, ...]]:
    """Reads the parts of each sample's name; an undivided name has one part.

    Raises:
        DataError: There are not `size` names, or one is empty or neither text nor a number.
    """
    rows = value if isinstance(value, list | tuple) else as_rows(value)
    if rows is None or len(getattr(rows, "shape", (0,))) not in (1, 2):
        found = describe_value(value)
        raise layout_error(path, key, found, f"{size} names", "correct or remove it")
    names = [
        tuple(map(to_text, entry))
        if isinstance(entry, list | tuple | np.ndarray)
        else (to_text(entry),)
        for entry in rows[:]
    ]
    if len(names) != size or not all(map("".join, names)):
        found = f"{len(names)} names, {sum(not ''.join(name) for name in names)} of them empty"
        expected = f"{size}, one for every sample"
        raise layout_error(path, key, found, expected, f"correct or remove the entry; {_REMEDY}")
    return names


def scan_features(
    inputs: Mapping[str, Rows], masks: Mapping[str, Bool[np.ndarray, "n _"] | None]
) -> tuple[dict[str, Bool[np.ndarray, "n _"]], dict[str, int]]:
    """Scans all modalities of a split, with their masks where these are known.

    Returns:
        The masks, and the number of values that are set to 0, by description. See
        `sequence_table.scan`.
    """
    mask: dict[str, np.ndarray] = {}
    repairs: dict[str, int] = {}
    for name, values in inputs.items():
        mask[name], counts = scan(values, masks.get(name))
        repairs |= {f"{name}: {kind} set to 0": count for kind, count in counts.items()}
    return mask, repairs


def _unique_names(tables: Mapping[str, SequenceTable]) -> tuple[dict[str, list[str]], int]:
    """Returns the names of all splits with repeated ones numbered, and the number of these."""
    seen: set[str] = set()
    names: dict[str, list[str]] = {split: [] for split in tables}
    repeated = 0
    for split, table in tables.items():
        for name in table.id:
            unique, count = name, 1
            while unique in seen:
                count += 1
                unique = f"{name}#{count}"
            repeated += unique != name
            seen.add(unique)
            names[split].append(unique)
    return names, repeated


def assemble(
    path: Path,
    tables: Mapping[str, SequenceTable],
    class_names: Sequence[str] = (),
    class_values: Sequence[float] = (),
    label_names: Sequence[str] = (),
    value_names: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> Contents:
    """Combines all splits, with unique names and the sum of repairs.

    Raises:
        DataError: No sample of the training split has a real time step.
    """
    if not len(tables["train"]):
        found = f"{tables['train'].num_empty} samples without a real step in any modality"
        remedy = f"training needs at least one sample; {_REMEDY}"
        raise layout_error(path, "train", found, "features that are not all 0", remedy)
    ids, repeated = _unique_names(tables)
    repairs: Counter[str] = Counter()
    for table in tables.values():
        repairs.update(table.repairs)
    empty = sum(table.num_empty for table in tables.values())
    repairs["samples without a real step in any modality, left out"] = empty
    repairs["names of samples that came again, numbered"] = repeated
    return Contents(
        modalities=tuple(modality_info(*item) for item in tables["train"].inputs.items()),
        class_names=tuple(class_names),
        class_values=tuple(class_values),
        label_names=tuple(label_names),
        value_names=tuple(value_names),
        remarks=tuple(remarks),
        splits={
            split: dataclasses.replace(table, id=ids[split]) for split, table in tables.items()
        },
        repairs={what: count for what, count in repairs.items() if count},
    )
