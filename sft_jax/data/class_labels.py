"""Classes of a user's labels, and warnings about labels and about inputs that contain them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sft_jax.data.array_entries import decode_names, is_one_number
from sft_jax.files import convert_errors, describe_value, layout_error

# With fewer samples, many classes or a value that fits one class alone can be chance.
_MIN_SAMPLES = 20
_MAX_LISTED = 10
# Columns (features at one time step) and rows compared with the label, to bound the time.
_OPTION = "data.options.modalities"
_MAX_COLUMNS = 4096
_MAX_FIRST_ROWS = 2048


class Classes(NamedTuple):
    """Labels as classes.

    Attributes:
        label: `[n]` int64 positions in `names`.
        names: Names of the classes.
        remarks: Sentences for the user on how labels were read.
    """

    label: np.ndarray
    names: tuple[str, ...]
    remarks: tuple[str, ...]


def read_classes(label: np.ndarray, names: Sequence[str] = (), where: str = "arrays") -> Classes:
    """Finds the classes of labels: the values that occur, sorted and named by their text.

    Args:
        label: `[n]` whole numbers (also as floats), booleans, or text.
        names: Names of the classes in order. Text labels are looked up in it. Number `i` is
            `names[i]` if all numbers are below `len(names)`; other numbers get the names in sorted
            order, if there are as many of them.
        where: Name of the file, for error messages.

    Raises:
        DataError: `label` has another shape or type, or does not fit `names`.
    """
    _check_shape(label, where)
    if label.dtype.kind in "US":
        with convert_errors(where, "UTF-8 text in label"):
            texts = np.asarray(decode_names(label), dtype=str)
        values, index = np.unique(texts, return_inverse=True)
        return _text_classes(values.tolist(), index, names, where)
    values, index = np.unique(_to_integers(label, where), return_inverse=True)
    return _number_classes([int(v) for v in values], index, names, where, label.dtype.kind == "b")


def _check_shape(label: np.ndarray, where: str) -> None:
    if label.ndim == 1 and label.dtype.kind in "biufUS":
        return
    remedy = "save one whole number or text for each sample"
    if label.ndim == 2 and label.shape[1] == 1:
        remedy = "save label[:, 0]"
    elif label.ndim == 2 and label.dtype.kind in "biuf":
        remedy = (
            "save label.argmax(axis=1) if each row marks one class; if a row may mark several, "
            "name the entry 'labels'"
        )
    expected = "whole numbers or text of shape [n]"
    raise layout_error(where, "label", describe_value(label), expected, remedy)


def _to_integers(label: np.ndarray, where: str) -> np.ndarray:
    """Converts numbers to integers; raises `DataError` for floats that are not whole."""
    if label.dtype.kind != "f":
        return label
    wrong = ~(np.isfinite(label) & (np.floor(label) == label))
    # Beyond this, neighbouring integers are the same float.
    wrong |= np.abs(np.where(wrong, 0, label)) >= 2 ** min(np.finfo(label.dtype).nmant + 1, 62)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"{label[row]} for sample {row} ({np.count_nonzero(wrong)} such samples)"
        expected = "whole numbers or text, one class for each sample"
        remedy = "remove samples without a class; to classify measurements, save ranges as text"
        raise layout_error(where, "label", found, expected, remedy)
    return label.astype(np.int64)


def _text_classes(
    values: list[str], index: np.ndarray, names: Sequence[str], where: str
) -> Classes:
    if "" in values:
        row = int(np.argmax(index == values.index("")))
        found, remedy = f"an empty text for sample {row}", "remove samples without a class"
        raise layout_error(where, "label", found, "the name of a class", remedy)
    if not names:
        return Classes(index.astype(np.int64), tuple(values), _text_remarks(values, index))
    unknown = [value for value in values if value not in names]
    if unknown:
        expected = f"one of data.options.class_names: {_join(names)}"
        remedy = "add it there, or leave class_names empty"
        raise layout_error(where, "label", f"class {unknown[0]!r}", expected, remedy)
    positions = np.array([list(names).index(value) for value in values], np.int64)
    return Classes(positions[index], tuple(names), _text_remarks(values, index))


def _text_remarks(values: list[str], index: np.ndarray) -> tuple[str, ...]:
    remarks = _count_remarks(len(values), len(index))
    seen: dict[str, str] = {}
    for value in values:
        other = seen.setdefault(value.strip().casefold(), value)
        if other != value:
            remarks += (
                f"label: {other!r} and {value!r} are two classes that differ only in case or space",
            )
    return remarks


def _number_classes(
    values: list[int], index: np.ndarray, names: Sequence[str], where: str, is_bool: bool
) -> Classes:
    remarks = _count_remarks(len(values), len(index))
    if not names:
        if values != list(range(len(values))):
            remarks += (
                f"label: numbers do not count from 0 without gaps; the classes are the "
                f"{len(values)} numbers that occur: {_join(values)}",
            )
        texts = [str(bool(value)) if is_bool else str(value) for value in values]
        return Classes(index.astype(np.int64), tuple(texts), remarks)
    if values[0] >= 0 and values[-1] < len(names):
        if values[0] > 0:
            remarks += (
                f"label: no sample has number 0 ({names[0]!r}); data.options.class_names counts "
                f"from 0, so that number {values[0]} is {names[values[0]]!r}",
            )
        return Classes(np.asarray(values, np.int64)[index], tuple(names), remarks)
    if len(values) != len(names):
        expected = (
            f"numbers from 0 to {len(names) - 1}, or {len(names)} different ones, for the "
            f"{len(names)} names in data.options.class_names"
        )
        found = f"{len(values)} classes, {_join(values)}"
        raise layout_error(where, "label", found, expected, "name every class")
    pairs = [f"{value} is {name!r}" for value, name in zip(values, names, strict=True)]
    remarks += (f"label: numbers are named in their order: {_join(pairs)}",)
    return Classes(index.astype(np.int64), tuple(names), remarks)


def _count_remarks(num_classes: int, size: int) -> tuple[str, ...]:
    if size < _MIN_SAMPLES or 2 * num_classes <= size:
        return ()
    return (
        f"label: {num_classes} classes in {size} samples; if these are measurements or names of "
        "samples, they are no classes",
    )


def _join(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_MAX_LISTED]))
    return shown + (", ..." if len(values) > _MAX_LISTED else "")


def modality_remarks(name: str, values: np.ndarray, label: np.ndarray | None) -> tuple[str, ...]:
    """Returns warnings about `[n, t, f]` features or `[n, t]` ids, given `[n]` classes."""
    remarks: tuple[str, ...] = ()
    remedy = f"if it should not be learned from, leave it out with {_OPTION}"
    if is_one_number(values):
        remarks += (f"modality {name} is one time step of one whole number; {remedy}",)
    if label is not None and determines_label(values, label):
        remarks += (f"modality {name} determines the label: it may hold it; {remedy}",)
    return remarks


def determines_label(values: np.ndarray, label: np.ndarray) -> bool:
    """Returns whether one column, or all columns of two values together, determine the class.

    A column of `values [n, ...]` is a feature at one time step. Columns whose values rarely repeat
    are skipped, since values that are all different determine any label.
    """
    size = len(label)
    if size < _MIN_SAMPLES or np.ptp(label) == 0:
        return False
    columns = values.reshape(size, -1)[:, :_MAX_COLUMNS]
    rows = np.unique(np.linspace(0, size - 1, min(size, _MAX_FIRST_ROWS)).astype(int))
    some = np.sort(columns[rows[:: max(1, len(rows) // 256)]], axis=0)
    distinct = 1 + np.count_nonzero(np.diff(some, axis=0), axis=0)
    binary = []
    for column in columns[:, 2 * distinct <= len(some)].T:
        if _is_function(column[rows], label[rows]) and _determines(column, label):
            return True
        codes = np.unique(column, return_inverse=True)[1]
        if codes.max() == 1:
            binary.append(codes)
    if len(binary) < 2:
        return False
    together = np.unique(np.stack(binary, axis=1), axis=0, return_inverse=True)[1]
    return _determines(together.reshape(-1), label)


def _is_function(values: np.ndarray, label: np.ndarray) -> bool:
    """Returns whether equal values always have equal labels."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    return bool(np.all(label[first][codes] == label))


def _determines(values: np.ndarray, label: np.ndarray) -> bool:
    """Returns whether `_is_function` holds and values repeat often enough to rule out chance."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if 2 * len(counts) > len(label) or not _is_function(values, label):
        return False
    classes, sizes = np.unique(label, return_counts=True)
    repeated = np.unique(label[counts[codes] > 1])
    return len(repeated) > 1 and bool(np.isin(classes[sizes > 1], repeated).all())
