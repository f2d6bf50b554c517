"""Reader of prepared directories that checks their metadata and records.

TFDS would import the modules that `features.json` names. This reader uses only the shards and
`metadata.json`, which determines the layout of a record.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sft_jax.data.builders.base import record_features
from sft_jax.data.records import MAX_TOKENS, SPLITS, DataInfo, LazyRecords, ModalityInfo, Record
from sft_jax.files import check_fits, layout_error

_METADATA = "metadata.json"
_REMEDY = "remove the folder, and prepare the source again"
_KINDS = ("feature", "token")
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError),
    ArithmeticError,  # of whole numbers beyond float64
)


def read_info(directory: Path) -> DataInfo:
    """Reads and checks the metadata of a prepared directory.

    Raises:
        DataError: The metadata is not as `prepare` writes it.
    """
    path = directory / _METADATA
    try:
        info = DataInfo.from_json(json.loads(path.read_text("utf-8")), str(directory))
        wrong = _wrong_field(info)
    # Any entry may be missing or of another type.
    except _UNREADABLE as error:
        found = f"{type(error).__name__} ({error})"
        raise layout_error(path, "file", found, "what was prepared", _REMEDY) from error
    if wrong:
        raise layout_error(path, wrong, "other values", "those that were prepared", _REMEDY)
    check_fits(2 * info.record_bytes, path, "modalities", _REMEDY)
    return info


def open_shards(info: DataInfo, split: str) -> LazyRecords:
    """Opens the files of a split, whose records are read and decoded when they are accessed.

    Raises:
        DataError: A file is missing, or the number of records differs from the metadata; later, a
            record is damaged.
    """
    features = record_features(info)
    files = _files(Path(info.directory), split)
    with _convert_errors(info, split):
        stored = grain.sources.ArrayRecordDataSource(files)
        size = len(stored)
    expected = info.num_records[split]
    if size != expected:
        raise layout_error(info.directory, split, f"{size} records", expected, _REMEDY)

    def read(index: int) -> Record:
        with _convert_errors(info, f"record {index} of {split}"):
            return _decode(features.deserialize_example_np(stored[index]), info)

    return LazyRecords(size, read)


@contextlib.contextmanager
def _convert_errors(info: DataInfo, key: str) -> Iterator[None]:
    try:
        yield
    # Damage raises errors of ArrayRecord, of protocol buffers, and of shapes.
    except Exception as error:
        found = f"{type(error).__name__} ({error})"
        raise layout_error(info.directory, key, found, "what was prepared", _REMEDY) from error


def _files(directory: Path, split: str) -> list[str]:
    """Returns the shards of a split, in order."""
    pattern = re.compile(rf"\w+-{split}\.array_record-(\d{{5}})-of-(\d{{5}})")
    paths = sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))
    numbers = [pattern.fullmatch(path.name).groups() for path in paths]  # type: ignore[union-attr]
    count = len(paths)
    if not count or numbers != [(f"{i:05d}", f"{count:05d}") for i in range(count)]:
        names = ", ".join(path.name for path in paths[:3]) or "none"
        raise layout_error(directory, split, f"files {names}", "all shards of the split", _REMEDY)
    return [str(path) for path in paths]


def _decode(stored: dict, info: DataInfo) -> Record:
    for m in info.modalities:
        if stored["inputs"][m.name].shape != m.shape or stored["mask"][m.name].shape != m.shape[:1]:
            raise ValueError(f"{m.name} of another shape")
    label = int(stored["label"])
    if not 0 <= label < max(info.num_classes, 1):
        raise ValueError(f"label {label}")
    optional = {name: stored[name] for name in ("labels", "weight") if name in stored}
    return Record(
        inputs={name: np.asarray(value) for name, value in stored["inputs"].items()},
        mask={name: np.asarray(value) for name, value in stored["mask"].items()},
        label=label,
        value=stored["value"],
        id=stored["id"].decode(),
        group=stored["group"].decode(),
        **optional,  # type: ignore[typeddict-item]
    )


def _wrong_field(info: DataInfo) -> str:
    """Returns the first field with an invalid value; empty if all are valid."""
    classes, names = len(info.class_names), [m.name for m in info.modalities]
    features = {m.name: m.feature_dim for m in info.modalities if m.kind == "feature"}
    checks = {
        "source": _is_text(info.source, info.source_sha256, info.fingerprint),
        "class_names": bool(info.class_names or info.label_names or info.value_names)
        and _is_text(*info.class_names, *info.label_names, *info.value_names)
        and isinstance(info.has_weight, bool),
        "modalities": 0 < len(names) == len(set(names)) and all(map(_is_modality, info.modalities)),
        "num_records": _is_counts(info.num_records, SPLITS),
        "class_counts": set(info.class_counts) == set(SPLITS)
        and all(
            _is_count(*counts)
            and len(counts) == classes
            and sum(counts) == (info.num_records[split] if classes else 0)
            for split, counts in info.class_counts.items()
        ),
        "class_values": len(info.class_values) in (0, classes) and _is_finite(*info.class_values),
        "repairs": _is_counts(info.repairs, info.repairs),
        "remarks": _is_text(*info.remarks),
        "options": isinstance(info.options, Mapping),
        "groups": set(info.groups) == set(SPLITS) and _are_texts(info.groups),
        "split_units": set(info.split_units) <= set(SPLITS) and _are_texts(info.split_units),
        "statistics": set(info.statistics) == set(features)
        and all(
            len(entry.mean) == len(entry.std) == features[name]
            and _is_finite(*entry.mean, *entry.std, entry.rms)
            and _is_count(entry.count)
            for name, entry in info.statistics.items()
        ),
    }
    return next((name for name, is_valid in checks.items() if not is_valid), "")


def _is_modality(m: ModalityInfo) -> bool:
    sizes = (m.length, m.feature_dim)
    return (
        _is_text(m.name)
        and _is_count(*sizes)
        and min(sizes) > 0
        and m.kind in _KINDS
        and (m.kind == "feature" or m.feature_dim <= MAX_TOKENS)
        and _is_finite(m.sampling_rate)
    )


def _are_texts(parts: Mapping[str, Sequence[Any]]) -> bool:
    return all(_is_text(*part) for part in parts.values())


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_counts(counts: Mapping[str, Any], keys: Any) -> bool:
    return set(counts) == set(keys) and _is_count(*counts.values())


def _is_count(*values: Any) -> bool:
    return all(isinstance(value, int) and 0 <= value < 2**63 for value in values)


def _is_finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
