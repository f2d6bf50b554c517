"""What lies in a prepared folder, checked before it is believed.

TFDS would import the modules that a folder's `features.json` names. Here nothing is read but
`metadata.json`, from which the layout of a record follows, and the shards themselves.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from sft_jax.data.builders.base import record_features
from sft_jax.data.records import MOST_TOKENS, SPLITS, DataInfo, ModalityInfo, Record
from sft_jax.files.errors import check_fits, layout_error
from sft_jax.types import DataError

_METADATA = "metadata.json"
_AGAIN = "remove the folder, and prepare the source again"
_KINDS = ("feature", "token")
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError),
    ArithmeticError,  # of whole numbers beyond float64
)


def read_info(directory: Path) -> DataInfo:
    """What the folder says of itself.

    Raises:
        DataError: it is not as `prepare` writes it.
    """
    path = directory / _METADATA
    try:
        info = DataInfo.from_json(json.loads(path.read_text("utf-8")), str(directory))
        wrong = _wrong(info)
    # Anything may be missing, or of another type.
    except _UNREADABLE as error:
        found = f"{type(error).__name__} ({error})"
        raise layout_error(path, "file", found, "what was prepared", _AGAIN) from error
    if wrong:
        raise layout_error(path, wrong, "something else", "what was prepared", _AGAIN)
    check_fits(2 * info.record_bytes, path, "modalities", _AGAIN)
    return info


class Shards(Sequence):
    """Records of a split, each read and decoded when it is asked for."""

    def __init__(self, info: DataInfo, split: str):
        """Opens the files of a split.

        Raises:
            DataError: one is missing, or they hold more or fewer records than the metadata says.
        """
        self._info, self._split = info, split
        self._features = record_features(info.modalities)
        files = _files(Path(info.directory), split)
        self._stored = self._explained(lambda: grain.sources.ArrayRecordDataSource(files))
        found, expected = self._explained(lambda: len(self._stored)), info.num_records[split]
        if found != expected:
            raise layout_error(info.directory, split, f"{found} records", expected, _AGAIN)

    def __len__(self) -> int:
        return self._info.num_records[self._split]

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """The record at `index`; raises `DataError` if it is damaged."""
        stored = self._explained(
            lambda: self._features.deserialize_example_np(self._stored[index]), index
        )
        return self._explained(lambda: _decode(stored, self._info), index)

    def _explained(self, read: Any, index: int | None = None) -> Any:
        try:
            return read()
        except DataError:
            raise
        # Damage surfaces as errors of ArrayRecord, of protocol buffers, and of shapes.
        except Exception as error:
            key = self._split if index is None else f"record {index} of {self._split}"
            found = f"{type(error).__name__} ({error})"
            where = self._info.directory
            raise layout_error(where, key, found, "what was prepared", _AGAIN) from error


def _files(directory: Path, split: str) -> list[str]:
    """The shards of a split, in order."""
    form = re.compile(rf"\w+-{split}\.array_record-(\d{{5}})-of-(\d{{5}})")
    found = sorted(path for path in directory.iterdir() if form.fullmatch(path.name))
    numbers = [form.fullmatch(path.name).groups() for path in found]  # type: ignore[union-attr]
    count = len(found)
    if not count or numbers != [(f"{i:05d}", f"{count:05d}") for i in range(count)]:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise layout_error(directory, split, f"files {names}", "all shards of the split", _AGAIN)
    return [str(path) for path in found]


def _decode(stored: dict, info: DataInfo) -> Record:
    for m in info.modalities:
        if stored["inputs"][m.name].shape != m.shape or stored["mask"][m.name].shape != m.shape[:1]:
            raise ValueError(f"{m.name} of another shape")
    label = int(stored["label"])
    if not 0 <= label < info.num_classes:
        raise ValueError(f"label {label}")
    return Record(
        inputs={name: np.asarray(value) for name, value in stored["inputs"].items()},
        mask={name: np.asarray(value) for name, value in stored["mask"].items()},
        label=label,
        value=float(stored["value"]),
        id=stored["id"].decode(),
        group=stored["group"].decode(),
    )


def _wrong(info: DataInfo) -> str:
    """The first field that does not hold what it should, empty if all do."""
    classes, names = len(info.class_names), [m.name for m in info.modalities]
    features = {m.name: m.feature_dim for m in info.modalities if m.kind == "feature"}
    checks = {
        "source": _is_text(info.source, info.source_sha256, info.fingerprint),
        "class_names": classes > 0 and _is_text(*info.class_names),
        "modalities": 0 < len(names) == len(set(names)) and all(map(_is_modality, info.modalities)),
        "num_records": _is_counts(info.num_records, SPLITS),
        "class_counts": set(info.class_counts) == set(SPLITS)
        and all(
            _is_count(*counts) and len(counts) == classes and sum(counts) == info.num_records[split]
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
            len(one.mean) == len(one.std) == features[name]
            and _is_finite(*one.mean, *one.std, one.rms)
            and _is_count(one.count)
            for name, one in info.statistics.items()
        ),
    }
    return next((name for name, right in checks.items() if not right), "")


def _is_modality(m: ModalityInfo) -> bool:
    sizes = (m.length, m.feature_dim)
    return (
        _is_text(m.name)
        and _is_count(*sizes)
        and min(sizes) > 0
        and m.kind in _KINDS
        and (m.kind == "feature" or m.feature_dim <= MOST_TOKENS)
        and _is_finite(m.sampling_rate)
    )


def _are_texts(parts: Mapping[str, Sequence[Any]]) -> bool:
    return all(_is_text(*part) for part in parts.values())


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_counts(given: Mapping[str, Any], keys: Any) -> bool:
    return set(given) == set(keys) and _is_count(*given.values())


def _is_count(*values: Any) -> bool:
    return all(isinstance(value, int) and 0 <= value < 2**63 for value in values)


def _is_finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
