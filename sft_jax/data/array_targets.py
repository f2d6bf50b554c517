"""Targets other than classes in a user's own arrays: labels, numbers, and weights of samples."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.data.array_entries import is_column
from sft_jax.files import describe_value, layout_error
from sft_jax.types import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels, numbers and weights of the samples of a table.

    Attributes:
        labels: `[n, l]` float32, 1, 0, or NaN where unknown; None without labels.
        label_names: Names of the labels.
        value: `[n, r]` float32, NaN where unknown; None without numbers.
        value_names: Names of the numbers.
        weight: `[n]` float32; None if all samples count alike.
        remarks: Sentences on what looks wrong.
    """

    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    value: np.ndarray | None = None
    value_names: tuple[str, ...] = ()
    weight: np.ndarray | None = None
    remarks: tuple[str, ...] = ()

    def of_row(self, index: int) -> dict[str, Any]:
        """Returns the entries of the record of a row."""
        entries: dict[str, Any] = {"value": math.nan}
        if self.value is not None:
            entries["value"] = (
                self.value[index] if len(self.value_names) > 1 else self.value[index, 0]
            )
        if self.labels is not None:
            entries["labels"] = self.labels[index]
        if self.weight is not None:
            entries["weight"] = float(self.weight[index])
        return entries


def read_targets(
    entries: Mapping[str, np.ndarray],
    size: int,
    label_names: Sequence[str],
    value_names: Sequence[str],
    where: str,
) -> Targets:
    """Reads `labels`, `value` and `weight` of a file.

    Args:
        entries: Arrays by name.
        size: Number of samples.
        label_names: Names of the columns of `labels`; their numbers if empty.
        value_names: Names of the columns of `value`; `value`, or their numbers, if empty.
        where: Name of the file, for error messages.

    Raises:
        DataError: An entry has another shape, type or range.
    """
    labels = _read_labels(entries, size, where)
    value = _read_value(entries, size, where)
    label_names = _names("label_names", label_names, "labels", labels, where)
    value_names = _names("value_names", value_names, "value", value, where)
    remarks = []
    if labels is not None:
        for outcome, column in (("1", labels == 1), ("0", labels == 0)):
            missing = [
                name for name, any_ in zip(label_names, column.any(axis=0), strict=True) if not any_
            ]
            if missing:
                shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
                remarks.append(
                    f"labels: no sample has {outcome} for {shown}, which cannot be learned"
                )
    if value is not None:
        for name, column in zip(value_names, value.T, strict=True):
            known = column[~np.isnan(column)]
            if not known.size or np.ptp(known) == 0:
                remarks.append(f"value: {name} is the same, or unknown, for all samples")
    return Targets(
        labels=labels,
        label_names=label_names,
        value=value,
        value_names=value_names,
        weight=_read_weight(entries, size, where),
        remarks=tuple(remarks),
    )


def _names(
    option: str, given: Sequence[str], key: str, values: np.ndarray | None, where: str
) -> tuple[str, ...]:
    count = 0 if values is None else values.shape[1]
    if given and len(given) != count:
        found = f"{len(given)} names for {count} columns of {key}"
        remedy = f"correct data.options.{option}"
        raise layout_error(where, key, found, "a name for each column", remedy)
    if given:
        return tuple(given)
    if key == "value":
        return ("value",) if count == 1 else tuple(f"value_{i}" for i in range(count))
    return tuple(map(str, range(count)))


def _read_labels(entries: Mapping[str, np.ndarray], size: int, where: str) -> np.ndarray | None:
    if not is_column(entries, "labels"):
        return None
    given = entries["labels"]
    if given.ndim != 2 or given.dtype.kind not in "biuf" or not given.shape[1]:
        expected = "0, 1, or NaN or -1 (unknown) of shape [n, labels]"
        remedy = "save one column for each label"
        raise layout_error(where, "labels", describe_value(given), expected, remedy)
    if len(given) != size:
        raise samples_error(where, "labels", len(given), size)
    labels = given.astype(np.float32)
    labels[labels == -1] = np.nan
    wrong = ~(np.isnan(labels) | np.isin(labels, (0, 1)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        found = f"{given[row, column]} for sample {row} ({np.count_nonzero(wrong)} such entries)"
        remedy = "save 1 where a sample has the label, 0 where not, NaN where that is not known"
        raise layout_error(where, "labels", found, "0, 1, NaN or -1", remedy)
    return labels


def _read_value(entries: Mapping[str, np.ndarray], size: int, where: str) -> np.ndarray | None:
    if not is_column(entries, "value"):
        return None
    given = entries["value"]
    if given.ndim not in (1, 2) or given.dtype.kind not in "iuf" or 0 in given.shape[1:]:
        expected = "numbers of shape [n] or [n, r], NaN where unknown"
        raise layout_error(where, "value", describe_value(given), expected, "save one row a sample")
    if len(given) != size:
        raise samples_error(where, "value", len(given), size)
    with np.errstate(over="ignore"):
        value = given.astype(np.float32).reshape(size, -1)
    infinite = np.isinf(value)
    if infinite.any():
        row, count = int(np.argwhere(infinite)[0][0]), np.count_nonzero(infinite)
        found = f"a number beyond float32 for sample {row} ({count} such numbers)"
        raise layout_error(where, "value", found, "finite numbers, or NaN", "rescale or remove it")
    return value


def _read_weight(entries: Mapping[str, np.ndarray], size: int, where: str) -> np.ndarray | None:
    if not is_column(entries, "weight"):
        return None
    given = entries["weight"]
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        expected = "one number of at least 0 for each sample"
        raise layout_error(where, "weight", describe_value(given), expected, "save weight [n]")
    if len(given) != size:
        raise samples_error(where, "weight", len(given), size)
    weight = given.astype(np.float32)
    wrong = ~(np.isfinite(weight) & (weight >= 0))
    if wrong.any() or not weight.any():
        found = f"{given[int(np.argmax(wrong))]} for sample {int(np.argmax(wrong))}"
        expected = "finite numbers of at least 0, one above 0"
        raise layout_error(where, "weight", found, expected, "correct the weights")
    return weight


def samples_error(where: str, key: str, size: int, expected_size: int) -> DataError:
    """Returns the error for an entry with another number of samples than the first modality."""
    expected, remedy = f"{expected_size}, as in the first modality", "save them with one first axis"
    return layout_error(where, key, f"{size} samples", expected, remedy)
