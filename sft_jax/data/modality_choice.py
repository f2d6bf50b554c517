"""Choice of the modalities among the entries of a user's file, and warnings about them."""

from collections.abc import Mapping, Sequence

import numpy as np

from sft_jax.files.errors import layout_error

COLUMNS = ("label", "id", "group", "split")
MAX_MODALITIES = 8
_OPTION = "data.options.modalities"
# With fewer samples, a value can stand with one class alone by chance.
_ENOUGH_SAMPLES = 20
# Columns (features at one time step) and rows that are looked at for leaks, to bound the time.
_MOST_COLUMNS = 4096
_ROWS_AT_FIRST = 2048


def choose_modalities(
    entries: Mapping[str, np.ndarray], wanted: Sequence[str], where: str
) -> tuple[list[str], dict[str, str]]:
    """Names of the modalities, and of every entry that is left out, with the reason.

    Args:
        entries: Arrays by name.
        wanted: Entries to take, in this order. Where empty, all that look like sequences are taken.
        where: Name of the file, for error messages.

    Raises:
        DataError: no modality or too many, or a name that is not there.
    """
    candidates = [key for key in entries if key not in COLUMNS and "/" not in key]
    _check_masks(entries, candidates, where)
    absent = [name for name in wanted if name not in candidates]
    if absent:
        raise layout_error(
            where,
            _OPTION,
            ", ".join(absent),
            f"names out of {', '.join(candidates) or 'none'}",
            f"correct {_OPTION}, or add the array",
        )
    if wanted:
        left_out = {name: "not one of those asked for" for name in candidates if name not in wanted}
        names = list(wanted)
    else:
        reasons = {name: _no_sequence(entries, name) for name in candidates}
        left_out = {name: reason for name, reason in reasons.items() if reason}
        names = [name for name in candidates if name not in left_out]
    if not 1 <= len(names) <= MAX_MODALITIES:
        others = "".join(f"; left out {name}: {reason}" for name, reason in left_out.items())
        raise layout_error(
            where,
            "modalities",
            f"{len(names)} in entries {', '.join(entries) or 'none'}{others}",
            f"1 to {MAX_MODALITIES} arrays named after their modality",
            f"add arrays, or name those to take in {_OPTION}",
        )
    return names, left_out


def find_sequences(entries: Mapping[str, np.ndarray]) -> set[str]:
    """Names of the entries that look like modalities."""
    return {
        key
        for key in entries
        if key not in COLUMNS and "/" not in key and not _no_sequence(entries, key)
    }


def left_out_remarks(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for every entry that is not taken as a modality."""
    return tuple(
        f"entry {name} is left out, not a modality: {reason}" for name, reason in left_out.items()
    )


def _check_masks(entries: Mapping[str, np.ndarray], candidates: Sequence[str], where: str) -> None:
    admitted = {f"{kind}/{name}" for kind in ("mask", "length") for name in candidates}
    for key in entries:
        if "/" in key and key not in admitted:
            raise layout_error(
                where,
                key,
                "an entry of this name",
                f"mask/<m> or length/<m> with <m> one of {', '.join(candidates)}",
                "rename or remove it",
            )


def _no_sequence(entries: Mapping[str, np.ndarray], name: str) -> str:
    """Why an entry does not look like sequences of samples; empty where it does."""
    values = entries[name]
    named = f"(to take it, name it in {_OPTION})"
    if f"mask/{name}" in entries or f"length/{name}" in entries:
        return ""  # said to be a sequence
    if values.ndim == 0:
        return "a single value"
    if values.ndim == 1:
        return "one value for each sample"
    if values.dtype.kind not in "biu" or 0 in values.shape:
        return ""
    if is_one_number(values):
        return f"one whole number for each sample {named}"
    if values.ndim == 2 and values.min() >= 0 and values.max() <= 1:
        return f"a table of 0 and 1, such as one-hot labels {named}"
    return ""


def is_one_number(values: np.ndarray) -> bool:
    """Whether samples have a single time step with a single number, and all are whole."""
    if values.ndim not in (2, 3) or values[:1].size != 1:
        return False
    return values.dtype.kind in "biu" or bool(np.all(values == np.floor(values)))


def modality_remarks(name: str, values: np.ndarray, label: np.ndarray | None) -> tuple[str, ...]:
    """Warnings about one modality.

    Args:
        name: Name of the modality.
        values: `[n, t, f]` features or `[n, t]` ids.
        label: `[n]` classes, or None where there are none.
    """
    remarks: tuple[str, ...] = ()
    remedy = f"if it should not be learned from, leave it out with {_OPTION}"
    if is_one_number(values):
        remarks += (f"modality {name} is one time step of one whole number; {remedy}",)
    if label is not None and determines_label(values, label):
        remarks += (f"modality {name} determines the label: it may hold it; {remedy}",)
    return remarks


def determines_label(values: np.ndarray, label: np.ndarray) -> bool:
    """Whether the class follows from one column, or from all columns of two values together.

    A column is a feature at one time step. Columns whose values hardly repeat are passed over,
    since any label follows from values that are all different.

    Args:
        values: `[n, ...]` numbers.
        label: `[n]` classes.
    """
    size = len(label)
    if size < _ENOUGH_SAMPLES or np.ptp(label) == 0:
        return False
    columns = values.reshape(size, -1)[:, :_MOST_COLUMNS]
    rows = np.unique(np.linspace(0, size - 1, min(size, _ROWS_AT_FIRST)).astype(int))
    some = np.sort(columns[rows[:: max(1, len(rows) // 256)]], axis=0)
    distinct = 1 + np.count_nonzero(np.diff(some, axis=0), axis=0)
    binary = []
    for column in columns[:, 2 * distinct <= len(some)].T:
        if _is_function(column[rows], label[rows]) and _follows(column, label):
            return True
        codes = np.unique(column, return_inverse=True)[1]
        if codes.max() == 1:
            binary.append(codes)
    if len(binary) < 2:
        return False
    together = np.unique(np.stack(binary, axis=1), axis=0, return_inverse=True)[1]
    return _follows(together.reshape(-1), label)


def _is_function(values: np.ndarray, label: np.ndarray) -> bool:
    """Whether equal values always have equal labels."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    return bool(np.all(label[first][codes] == label))


def _follows(values: np.ndarray, label: np.ndarray) -> bool:
    """As `_is_function`, where values repeat so often, in every class, that it is no chance."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if 2 * len(counts) > len(label) or not _is_function(values, label):
        return False
    classes, sizes = np.unique(label, return_counts=True)
    repeated = np.unique(label[counts[codes] > 1])
    return len(repeated) > 1 and bool(np.isin(classes[sizes > 1], repeated).all())
