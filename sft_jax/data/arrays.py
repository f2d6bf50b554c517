"""A user's own arrays: read, checked, and handed out as records."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.data.array_entries import CHUNK, as_array, load_entries
from sft_jax.data.class_labels import read_classes
from sft_jax.data.modality_choice import choose_modalities, left_out_remarks, modality_remarks
from sft_jax.data.records import MOST_TOKENS, ModalityInfo, Record, fixed_length
from sft_jax.data.splits import SPLIT_NAMES
from sft_jax.files.errors import explained, layout_error
from sft_jax.types import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayTable(Sequence):
    """Checked arrays as a sequence of records, in the order of the file.

    Attributes:
        path: the file or directory.
        modalities: one per array, in the order of the file (of names, for a directory).
        inputs: `{m: [n, t, f]}` float32 or `{m: [n, t]}` int32.
        mask: `{m: [n, t]}` bool.
        label: `[n]` int64 positions in `class_names`, or None where labels were not asked for;
            records then carry 0.
        class_names: Names of the classes; empty without labels.
        id: of every sample; its position where the file has none.
        group: of every sample; its id where the file has none.
        split: Split of every sample, or None where the file does not say.
        repairs: how many values of each modality were not finite and became 0.
        remarks: Sentences on what was left out, assumed or looks wrong.
    """

    path: str
    modalities: tuple[ModalityInfo, ...]
    inputs: dict[str, np.ndarray]
    mask: dict[str, np.ndarray]
    label: np.ndarray | None
    class_names: tuple[str, ...]
    id: list[str]
    group: list[str]
    split: list[str] | None
    repairs: dict[str, int]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """The record of row `index`."""
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
            value=math.nan,
            id=self.id[index],
            group=self.group[index],
        )

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))


def read_arrays(path: str | os.PathLike, require_label: bool, **options: Any) -> ArrayTable:
    """Reads an `.npz` file or a directory of `.npy`, and checks all of it.

    Entries: one array per modality, `[n, t, f]` floats or `[n, t]` whole-number ids; `label [n]`;
    optionally `mask/<m> [n, t]` bool or `length/<m> [n]` (steps from the start that are real),
    `id [n]`, `group [n]` and `split [n]`. Without mask and length every step is real. Values that
    are not finite become 0 and are counted in `repairs` where the step is real.

    Args:
        path: file or directory.
        require_label: False to read samples for prediction; labels and splits are then ignored.
        **options: `modalities` and `class_names` of `check_arrays`.

    Raises:
        DataError: anything is missing, of the wrong rank or type, or does not agree.
    """
    return check_arrays(load_entries(path), require_label, str(path), **options)


def check_arrays(
    entries: Mapping[str, Any],
    require_label: bool,
    where: str = "arrays",
    modalities: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> ArrayTable:
    """Checks arrays in memory, as `read_arrays` does those of a file.

    Args:
        entries: By name, as in a file; lists and whatever else NumPy makes an array of, too.
        require_label: False for samples for prediction; labels and splits are then ignored.
        where: what errors call them.
        modalities: Entries to take as modalities; all that look like sequences where empty.
        class_names: Names of the classes, see `class_labels.read_classes`.

    Raises:
        DataError: anything is missing, of the wrong rank or type, or does not agree.
    """
    arrays = {key: as_array(values, key, where) for key, values in entries.items()}
    if require_label and "label" not in arrays:
        raise layout_error(
            where,
            "label",
            f"entries {', '.join(arrays) or 'none'}",
            "an entry 'label' with the class of every sample",
            "add it; only prediction reads files without labels",
        )
    names, left_out = choose_modalities(arrays, modalities, where)
    size = len(arrays[names[0]]) if arrays[names[0]].ndim else 0
    infos, inputs, mask, repairs = [], {}, {}, {}
    for name in names:
        _check_modality(arrays[name], name, size, where)
        mask[name] = _read_mask(arrays, name, where)
        inputs[name], repaired = _clean(arrays[name], mask[name], name, where)
        infos.append(_describe(inputs[name], name))
        if repaired:
            repairs[f"{name}: values that were not finite, set to 0"] = repaired
    _check_some_modality(mask, where)
    ids = _read_text(arrays, "id", size, where) or [str(row) for row in range(size)]
    _check_unique(ids, where)
    remarks = left_out_remarks(left_out)
    label = None
    found_names: tuple[str, ...] = ()
    if require_label:
        label, found_names, about_classes = read_classes(arrays["label"], class_names, where)
        if len(label) != size:
            raise _samples_error(where, "label", len(label), size)
        remarks += about_classes
        for name in names:
            remarks += modality_remarks(name, inputs[name], label)
    return ArrayTable(
        path=where,
        modalities=tuple(infos),
        inputs=inputs,
        mask=mask,
        label=label,
        class_names=found_names,
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
        raise layout_error(
            where,
            name,
            f"{values.dtype} of shape {values.shape}",
            "features [n, t, f] or whole-number ids [n, t], none of them empty",
            "reshape it, or name the entries to take without it in data.options.modalities",
        )
    if len(values) != size:
        raise _samples_error(where, name, len(values), size)


def _read_mask(entries: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    shape = entries[name].shape[:2]
    mask, length = entries.get(f"mask/{name}"), entries.get(f"length/{name}")
    if mask is not None and length is not None:
        raise layout_error(
            where, f"length/{name}", "both mask and length", "one", "remove one of them"
        )
    if mask is not None:
        if mask.shape != shape or mask.dtype != bool:
            raise layout_error(
                where,
                f"mask/{name}",
                f"{mask.dtype} of shape {mask.shape}",
                f"bool of shape {shape}, true where a step is real",
                "reshape it, or convert it with .astype(bool)",
            )
        return np.array(mask)
    if length is None:
        return np.ones(shape, bool)
    if length.shape != shape[:1] or length.dtype.kind not in "iu":
        raise layout_error(
            where,
            f"length/{name}",
            f"{length.dtype} of shape {length.shape}",
            f"whole numbers of shape {shape[:1]}",
            "reshape it, or convert it with .astype(int)",
        )
    if length.min() < 0 or length.max() > shape[1]:
        row = int(np.argmax((length < 0) | (length > shape[1])))
        raise layout_error(
            where,
            f"length/{name}",
            f"{length[row]} for sample {row}",
            f"0 to {shape[1]}, the time steps of {name}",
            "correct it, or pad the array to the longest sample",
        )
    return np.arange(shape[1]) < np.asarray(length)[:, None]


def _clean(values: np.ndarray, mask: np.ndarray, name: str, where: str) -> tuple[np.ndarray, int]:
    """Float32 features without NaN or infinity and how many were, or int32 ids."""
    if values.ndim == 2:
        real = np.where(mask, values, 0)
        if real.min() < 0 or real.max() >= MOST_TOKENS:
            raise layout_error(
                where,
                name,
                f"id {real.min() if real.min() < 0 else real.max()}",
                f"ids from 0 to below {MOST_TOKENS:,}, of which each gets an embedding",
                "number them from 0, and mask padding",
            )
        return real.astype(np.int32), 0
    # A float64 beyond float32 becomes an infinity here and is counted as one.
    with np.errstate(over="ignore"):
        clean = np.array(values, dtype=np.float32)
    repaired = 0
    for start in range(0, len(clean), CHUNK):
        part = clean[start : start + CHUNK]
        bad = ~np.isfinite(part)
        repaired += int(np.count_nonzero(bad & mask[start : start + CHUNK, :, None]))
        part[bad] = 0
    return clean, repaired


def _describe(values: np.ndarray, name: str) -> ModalityInfo:
    if values.ndim == 2:
        vocabulary = int(values.max()) + 1
        return ModalityInfo(name=name, length=values.shape[1], feature_dim=vocabulary, kind="token")
    return ModalityInfo(
        name=name, length=values.shape[1], feature_dim=values.shape[2], kind="feature"
    )


def _check_some_modality(mask: dict[str, np.ndarray], where: str) -> None:
    empty = ~np.any([real.any(1) for real in mask.values()], axis=0)
    if empty.any():
        raise layout_error(
            where,
            "mask or length",
            f"no real time step in any modality of sample {int(np.argmax(empty))} "
            f"({np.count_nonzero(empty)} such samples)",
            "at least one real step in one modality",
            "remove these samples",
        )


def _read_split(entries: Mapping[str, np.ndarray], size: int, where: str) -> list[str] | None:
    """`train`, `valid` or `test` for every sample, or None where the file does not say."""
    given = _read_text(entries, "split", size, where)
    if given is None:
        return None
    splits = [SPLIT_NAMES.get(name.strip().lower(), "") for name in given]
    if "" in splits:
        row = splits.index("")
        raise layout_error(
            where,
            "split",
            f"{given[row]!r} for sample {row}",
            f"one of {', '.join(SPLIT_NAMES)}",
            "correct it, or remove the entry to have splits drawn",
        )
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
        raise layout_error(
            where,
            key,
            f"{values.dtype} of shape {values.shape}",
            f"text or whole numbers of shape ({size},)",
            "save one name for each sample",
        )
    if len(values) != size:
        raise _samples_error(where, key, len(values), size)
    return explained(lambda: list(map(_text, values.tolist())), where, f"UTF-8 text in {key}")


def _text(value: str | bytes | int) -> str:
    name = value.decode() if isinstance(value, bytes) else str(value)
    # Half of a pair of code units is no text, and could not be stored.
    name.encode()
    return name


def _check_unique(ids: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise layout_error(
                where, "id", f"{name!r} twice", "one sample for each id", "rename one"
            )
        seen.add(name)


def _samples_error(where: str, key: str, found: int, expected: int) -> DataError:
    return layout_error(
        where,
        key,
        f"{found} samples",
        f"{expected}, as in the first modality",
        "save all entries with the same first axis",
    )
