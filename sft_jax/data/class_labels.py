"""Classes of a user's labels: which there are, their order, and their names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sft_jax.files.errors import explained, layout_error

# Fewer samples than this can have many classes by chance.
_ENOUGH_SAMPLES = 20
_MOST_NAMED = 10


class Classes(NamedTuple):
    """Labels as classes.

    Attributes:
        label: `[n]` int64, position of the sample's class in `names`.
        names: Names of the classes.
        remarks: What a user should know about how labels were taken.
    """

    label: np.ndarray
    names: tuple[str, ...]
    remarks: tuple[str, ...]


def read_classes(label: np.ndarray, names: Sequence[str] = (), where: str = "arrays") -> Classes:
    """Takes the values that occur in `label` as the classes, sorted and named by their text.

    Args:
        label: `[n]` whole numbers (also as floats), truth values, or text.
        names: Names of the classes in order. Text labels are looked up in it. Number `i` is
            `names[i]` where all numbers are below `len(names)`; other numbers get the names in
            their order, where there are as many of them.
        where: Name of the file, for error messages.

    Raises:
        DataError: `label` has another shape or type, or does not fit `names`.
    """
    _check_shape(label, where)
    if label.dtype.kind in "US":
        texts = explained(lambda: _texts(label), where, "UTF-8 text in label")
        values, index = np.unique(texts, return_inverse=True)
        return _text_classes(values.tolist(), index, names, where)
    values, index = np.unique(_whole(label, where), return_inverse=True)
    return _number_classes([int(v) for v in values], index, names, where, label.dtype.kind == "b")


def _check_shape(label: np.ndarray, where: str) -> None:
    if label.ndim == 1 and label.dtype.kind in "biufUS":
        return
    remedy = "save one whole number or text for each sample"
    if label.ndim == 2 and label.shape[1] == 1:
        remedy = "save label[:, 0]"
    elif label.ndim == 2 and label.dtype.kind in "biuf":
        remedy = "save label.argmax(axis=1) if each row marks one class"
    raise layout_error(
        where,
        "label",
        f"{label.dtype} of shape {label.shape}",
        "whole numbers or text of shape [n]",
        remedy,
    )


def _texts(label: np.ndarray) -> np.ndarray:
    texts = [v.decode() if isinstance(v, bytes) else v for v in label.tolist()]
    for text in texts:
        text.encode()  # an unpaired surrogate is not valid text and could not be stored
    return np.asarray(texts, dtype=str)


def _whole(label: np.ndarray, where: str) -> np.ndarray:
    """Numbers as integers; refuses floats that are not whole."""
    if label.dtype.kind != "f":
        return label
    wrong = ~(np.isfinite(label) & (np.floor(label) == label))
    # Beyond this, neighbouring whole numbers are one float.
    wrong |= np.abs(np.where(wrong, 0, label)) >= 2 ** min(np.finfo(label.dtype).nmant + 1, 62)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise layout_error(
            where,
            "label",
            f"{label[row]} for sample {row} ({np.count_nonzero(wrong)} such samples)",
            "whole numbers or text, one class for each sample",
            "remove samples without a class; to classify measurements, save their ranges as text",
        )
    return label.astype(np.int64)


def _text_classes(
    values: list[str], index: np.ndarray, names: Sequence[str], where: str
) -> Classes:
    if "" in values:
        row = int(np.argmax(index == values.index("")))
        raise layout_error(
            where,
            "label",
            f"an empty text for sample {row}",
            "the name of a class",
            "remove samples without a class",
        )
    if not names:
        return Classes(index.astype(np.int64), tuple(values), _remarks_on_text(values, index))
    unknown = [value for value in values if value not in names]
    if unknown:
        raise layout_error(
            where,
            "label",
            f"class {unknown[0]!r}",
            f"one of data.options.class_names: {_listed(names)}",
            "add it there, or leave class_names empty",
        )
    positions = np.array([list(names).index(value) for value in values], np.int64)
    return Classes(positions[index], tuple(names), _remarks_on_text(values, index))


def _remarks_on_text(values: list[str], index: np.ndarray) -> tuple[str, ...]:
    remarks = _remarks_on_count(len(values), len(index))
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
    remarks = _remarks_on_count(len(values), len(index))
    if not names:
        if values != list(range(len(values))):
            remarks += (
                f"label: numbers do not count from 0 without gaps; the classes are the "
                f"{len(values)} numbers that occur: {_listed(values)}",
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
        raise layout_error(
            where,
            "label",
            f"{len(values)} classes, {_listed(values)}",
            f"numbers from 0 to {len(names) - 1}, or {len(names)} different ones, for the "
            f"{len(names)} names in data.options.class_names",
            "name every class",
        )
    pairs = [f"{value} is {name!r}" for value, name in zip(values, names, strict=True)]
    remarks += (f"label: numbers are named in their order: {_listed(pairs)}",)
    return Classes(index.astype(np.int64), tuple(names), remarks)


def _remarks_on_count(num_classes: int, size: int) -> tuple[str, ...]:
    if size < _ENOUGH_SAMPLES or 2 * num_classes <= size:
        return ()
    return (
        f"label: {num_classes} classes in {size} samples; if these are measurements or names of "
        "samples, they are no classes",
    )


def _listed(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_MOST_NAMED]))
    return shown + (", ..." if len(values) > _MOST_NAMED else "")
