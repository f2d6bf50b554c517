"""Records of a user's own arrays, checked when they are read."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.data.array_entries import (
    CHUNK,
    as_array,
    choose_modalities,
    decode_names,
    is_column,
    load_entries,
)
from sft_jax.data.array_targets import Targets, read_targets, samples_error
from sft_jax.data.class_labels import modality_remarks, read_classes
from sft_jax.data.records import MAX_TOKENS, ModalityInfo, Record, fixed_length
from sft_jax.data.splits import SPLIT_ALIASES
from sft_jax.files import convert_errors, describe_value, layout_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayTable(Sequence):
    """Checked arrays as a sequence of records, in the order of the file.

    Attributes:
        path: Path of the file or directory.
        modalities: One entry for each array, in the order of the file (sorted for a directory).
        inputs: `{m: [n, t, f]}` float32 or `{m: [n, t]}` int32.
        mask: `{m: [n, t]}` bool.
        label: `[n]` int64 positions in `class_names`, or None for samples to predict, whose records
            have class 0.
        class_names: Names of the classes; empty without classes.
        targets: Other targets of the samples; none for samples to predict.
        id: Name of each sample; its position if the file has none.
        group: Group of each sample; its id if the file has none.
        split: Split of each sample; None if the file has none.
        repairs: Number of non-finite values of each modality that were set to 0.
        remarks: Sentences on what was left out, assumed or looks wrong.
    """

    path: str
    modalities: tuple[ModalityInfo, ...]
    inputs: dict[str, np.ndarray]
    mask: dict[str, np.ndarray]
    label: np.ndarray | None
    class_names: tuple[str, ...]
    targets: Targets
    id: list[str]
    group: list[str]
    split: list[str] | None
    repairs: dict[str, int]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """Returns the record of row `index`."""
        inputs, mask = {}, {}
        for modality in self.modalities:
            name = modality.name
            inputs[name], mask[name] = fixed_length(
                self.inputs[name][index], self.mask[name][index], modality.length
            )
        return Record(
            inputs=inputs,
            mask=mask,
            label=0 if self.label is None else int(self.label[index]),
            id=self.id[index],
            group=self.group[index],
            **self.targets.of_row(index),  # type: ignore[typeddict-item]
        )

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))


def read_arrays(path: str | os.PathLike, require_label: bool, **options: Any) -> ArrayTable:
    """Reads an `.npz` file or a directory of `.npy`, and checks all of it.

    Entries are one array per modality, `[n, t, f]` floats or `[n, t]` integer ids; one or more of
    `label [n]`, `labels [n, l]` and `value [n]` or `[n, r]`; optionally `weight [n]`, `mask/<m>
    [n, t]` bool or `length/<m> [n]` (number of real steps from the start), `id [n]`, `group [n]`
    and `split [n]`. Without mask and length every step is real. Non-finite features become 0 and
    are counted in `repairs` at real steps.

    Args:
        path: Path of the file or directory.
        require_label: False to read samples for prediction, ignoring labels and splits.
        **options: `modalities` and the names of `check_arrays`.

    Raises:
        DataError: An entry is missing, has a wrong rank or type, or contradicts another.
    """
    return check_arrays(load_entries(path), require_label, str(path), **options)


def check_arrays(
    entries: Mapping[str, Any],
    require_label: bool,
    where: str = "arrays",
    modalities: Sequence[str] = (),
    class_names: Sequence[str] = (),
    label_names: Sequence[str] = (),
    value_names: Sequence[str] = (),
) -> ArrayTable:
    """Checks arrays in memory, like `read_arrays` those of a file.

    Args:
        entries: Arrays by name, or lists and other values that NumPy can convert.
        require_label: False for samples for prediction, ignoring labels and splits.
        where: Name of the data, for error messages.
        modalities: Entries to take as modalities; if empty, all that look like sequences.
        class_names: Names of the classes, see `class_labels.read_classes`.
        label_names: Names of the columns of `labels`.
        value_names: Names of the columns of `value`.

    Raises:
        DataError: An entry is missing, has a wrong rank or type, or contradicts another.
    """
    arrays = {key: as_array(values, key, where) for key, values in entries.items()}
    if require_label and not any(is_column(arrays, key) for key in ("label", "labels", "value")):
        found = f"entries {', '.join(arrays) or 'none'}"
        expected = (
            "an entry 'label' with the class of every sample, 'labels' with 0 or 1 for each of "
            "several labels, or 'value' with numbers to predict"
        )
        remedy = "add it; only prediction reads files without labels"
        raise layout_error(where, "label", found, expected, remedy)
    names, left_out = choose_modalities(arrays, modalities, where)
    size = len(arrays[names[0]]) if arrays[names[0]].ndim else 0
    infos, inputs, mask, repairs = [], {}, {}, {}
    for name in names:
        _check_modality(arrays[name], name, size, where)
        mask[name] = _read_mask(arrays, name, where)
        inputs[name], repaired = _clean(arrays[name], mask[name], name, where)
        infos.append(_modality_info(inputs[name], name))
        if repaired:
            repairs[f"{name}: values that were not finite, set to 0"] = repaired
    _check_some_modality(mask, where)
    ids = _read_text(arrays, "id", size, where) or [str(row) for row in range(size)]
    _check_unique(ids, where)
    remarks = tuple(
        f"entry {name} is left out, not a modality: {reason}" for name, reason in left_out.items()
    )
    label = None
    names_of_classes: tuple[str, ...] = ()
    targets = Targets()
    if require_label:
        targets = read_targets(arrays, size, label_names, value_names, where)
        remarks += targets.remarks
    if require_label and "label" in arrays:
        label, names_of_classes, label_remarks = read_classes(arrays["label"], class_names, where)
        if len(label) != size:
            raise samples_error(where, "label", len(label), size)
        remarks += label_remarks
        for name in names:
            remarks += modality_remarks(name, inputs[name], label)
    return ArrayTable(
        path=where,
        modalities=tuple(infos),
        inputs=inputs,
        mask=mask,
        label=label,
        class_names=names_of_classes,
        targets=targets,
        id=ids,
        group=_read_text(arrays, "group", size, where) or ids,
        split=_read_split(arrays, size, where) if require_label else None,
        repairs=repairs,
        remarks=remarks,
    )


def _check_modality(values: np.ndarray, name: str, size: int, where: str) -> None:
    features = values.ndim == 3 and values.dtype.kind in "fiu"
    ids = values.ndim == 2 and values.dtype.kind in "iu"
    if not (features or ids) or 0 in values.shape:
        expected = "features [n, t, f] or whole-number ids [n, t], none of them empty"
        remedy = "reshape it, or name the entries to take without it in data.options.modalities"
        raise layout_error(where, name, describe_value(values), expected, remedy)
    if len(values) != size:
        raise samples_error(where, name, len(values), size)


def _read_mask(entries: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    shape = entries[name].shape[:2]
    mask, length = entries.get(f"mask/{name}"), entries.get(f"length/{name}")
    key = f"length/{name}"
    if mask is not None and length is not None:
        raise layout_error(where, key, "both mask and length", "one", "remove one of them")
    if mask is not None:
        if mask.shape != shape or mask.dtype != bool:
            expected = f"bool of shape {shape}, true where a step is real"
            remedy = "reshape it, or convert it with .astype(bool)"
            raise layout_error(where, f"mask/{name}", describe_value(mask), expected, remedy)
        return np.array(mask)
    if length is None:
        return np.ones(shape, bool)
    if length.shape != shape[:1] or length.dtype.kind not in "iu":
        expected = f"whole numbers of shape {shape[:1]}"
        remedy = "reshape it, or convert it with .astype(int)"
        raise layout_error(where, key, describe_value(length), expected, remedy)
    if length.min() < 0 or length.max() > shape[1]:
        row = int(np.argmax((length < 0) | (length > shape[1])))
        found, expected = f"{length[row]} for sample {row}", f"0 to {shape[1]}, the steps of {name}"
        remedy = "correct it, or pad the array to the longest sample"
        raise layout_error(where, key, found, expected, remedy)
    return np.arange(shape[1]) < np.asarray(length)[:, None]


def _clean(values: np.ndarray, mask: np.ndarray, name: str, where: str) -> tuple[np.ndarray, int]:
    """Returns float32 features with 0 for non-finite values and their number, or int32 ids."""
    if values.ndim == 2:
        real = np.where(mask, values, 0)
        if real.min() < 0 or real.max() >= MAX_TOKENS:
            found = f"id {real.min() if real.min() < 0 else real.max()}"
            expected = f"ids from 0 to below {MAX_TOKENS:,}, of which each gets an embedding"
            remedy = "number them from 0, and mask padding"
            raise layout_error(where, name, found, expected, remedy)
        return real.astype(np.int32), 0
    # A float64 beyond the range of float32 becomes an infinity and is counted as one.
    with np.errstate(over="ignore"):
        clean = np.array(values, dtype=np.float32)
    repaired = 0
    for start in range(0, len(clean), CHUNK):
        part = clean[start : start + CHUNK]
        bad = ~np.isfinite(part)
        repaired += int(np.count_nonzero(bad & mask[start : start + CHUNK, :, None]))
        part[bad] = 0
    return clean, repaired


def _modality_info(values: np.ndarray, name: str) -> ModalityInfo:
    is_token = values.ndim == 2
    width = int(values.max()) + 1 if is_token else values.shape[2]
    kind = "token" if is_token else "feature"
    return ModalityInfo(name=name, length=values.shape[1], feature_dim=width, kind=kind)


def _check_some_modality(mask: dict[str, np.ndarray], where: str) -> None:
    empty = ~np.any([real.any(1) for real in mask.values()], axis=0)
    if empty.any():
        row, count = int(np.argmax(empty)), np.count_nonzero(empty)
        found = f"no real time step in any modality of sample {row} ({count} such samples)"
        expected = "at least one real step in one modality"
        raise layout_error(where, "mask or length", found, expected, "remove these samples")


def _read_split(entries: Mapping[str, np.ndarray], size: int, where: str) -> list[str] | None:
    """Returns `train`, `valid` or `test` for every sample; None if the file has no splits."""
    names = _read_text(entries, "split", size, where)
    if names is None:
        return None
    splits = [SPLIT_ALIASES.get(name.strip().lower(), "") for name in names]
    if "" in splits:
        row = splits.index("")
        found, expected = f"{names[row]!r} for sample {row}", f"one of {', '.join(SPLIT_ALIASES)}"
        remedy = "correct it, or remove the entry to have splits drawn"
        raise layout_error(where, "split", found, expected, remedy)
    if "train" not in splits:
        found = ", ".join(sorted(set(splits)))
        raise layout_error(where, "split", f"{found} alone", "some samples to train on", "add them")
    return splits


def _read_text(
    entries: Mapping[str, np.ndarray], key: str, size: int, where: str
) -> list[str] | None:
    if key not in entries:
        return None
    values = entries[key]
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        expected = f"text or whole numbers of shape ({size},)"
        remedy = "save one name for each sample"
        raise layout_error(where, key, describe_value(values), expected, remedy)
    if len(values) != size:
        raise samples_error(where, key, len(values), size)
    with convert_errors(where, f"UTF-8 text in {key}"):
        return decode_names(values)


def _check_unique(ids: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            expected = "one sample for each id"
            raise layout_error(where, "id", f"{name!r} twice", expected, "rename one")
        seen.add(name)
