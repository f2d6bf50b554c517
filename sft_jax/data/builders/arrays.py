"""Source of a user's own arrays."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sft_jax.config.data import ArraysOptions
from sft_jax.data.array_entries import source_files
from sft_jax.data.arrays import ArrayTable, read_arrays
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import SPLITS, Contents, select
from sft_jax.data.splits import hold_out
from sft_jax.files import file_sha256
from sft_jax.types import DataError

_SETTING = "data.options.path"


class Arrays(SourceBuilder, skip_registration=True):
    """Samples of `.npz` files or directories of `.npy`; see `sft_jax.config.data.ArraysOptions`."""

    # 1.2.0: splits are drawn by class, and classes are the labels that occur.
    VERSION = tfds.core.Version("1.2.0")
    options: ArraysOptions

    def source_sha256(self) -> str:
        """Returns the SHA-256 of the file, or over names and hashes of a directory's files."""
        source = source_files(self.options.path, _SETTING)
        if source.root.is_file():
            return file_sha256(source.root)
        lines = [f"{file_sha256(file)} {key}" for key, file in sorted(source.entries.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def options_summary(self) -> str:
        """Returns the name of the file and the sizes of its splits."""
        o = self.options
        stem = source_files(o.path, _SETTING).root.stem
        return f"{stem}-valid{o.valid_fraction:g}-test{o.test_fraction:g}-split{o.split_seed}"

    def identity(self) -> dict[str, Any]:
        """Returns the options that determine the records.

        Names of labels and numbers count where they are given, so that data prepared before these
        options existed stay valid.
        """
        options = super().identity()
        return {
            key: value
            for key, value in options.items()
            if value or key not in ("label_names", "value_names")
        }

    def contents(self) -> Contents:
        """Reads, checks and splits the arrays."""
        o = self.options
        names = {key: getattr(o, key) for key in ("class_names", "label_names", "value_names")}
        table = read_arrays(o.path, require_label=True, modalities=o.modalities, **names)
        split, remarks = assign_splits(table, o)
        group = np.asarray(table.group)
        rows = {name: np.flatnonzero(split == name).tolist() for name in SPLITS}
        return Contents(
            modalities=table.modalities,
            class_names=table.class_names,
            label_names=table.targets.label_names,
            value_names=table.targets.value_names,
            has_weight=table.targets.weight is not None,
            splits={name: select(part, table.__getitem__) for name, part in rows.items()},
            repairs=table.repairs,
            remarks=table.remarks + remarks,
            split_units={
                name: tuple(sorted(set(group[part].tolist()))) for name, part in rows.items()
            },
        )


def assign_splits(table: ArrayTable, options: ArraysOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the split of every sample `[n]`, and remarks for the user.

    Splits of the file are used as they are; if it has no validation split, one is held out of
    training. Otherwise test and validation are drawn, class by class as far as groups allow.

    Raises:
        DataError: No sample is left to train on.
    """
    if table.split is None:
        split = np.full(len(table), "train")
        _draw(split, "test", options.test_fraction, table, options)
        _draw(split, "valid", options.valid_fraction / (1 - options.test_fraction), table, options)
        remarks = tuple(
            f"split {name} is empty: no class has enough samples to hold one out"
            for name in ("valid", "test")
            if getattr(options, f"{name}_fraction") and name not in split
        )
        return split, remarks
    split = np.asarray(table.split)
    present = set(table.split)
    remarks = ("splits are those of the entry 'split'; test_fraction is not used",)
    if "test" not in present:
        remarks += ("the entry 'split' has no test samples, so split test is empty",)
    divided = _divided_groups(table.group, table.split)
    if divided:
        shown = ", ".join(divided[:3]) + (", ..." if len(divided) > 3 else "")
        remarks += (f"{len(divided)} groups have samples in more than one split: {shown}",)
    if "valid" not in present and options.valid_fraction:
        _draw(split, "valid", options.valid_fraction, table, options)
        count = np.count_nonzero(split == "valid")
        remarks += (
            f"the entry 'split' has no validation samples; {count} training samples were held out "
            f"for it (valid_fraction {options.valid_fraction:g})",
        )
    return split, remarks


def _draw(
    split: np.ndarray, name: str, fraction: float, table: ArrayTable, options: ArraysOptions
) -> None:
    """Moves a fraction of the training samples to split `name`, in place."""
    rows = np.flatnonzero(split == "train")
    group = [table.group[row] for row in rows]
    label = np.zeros(len(table), np.int64) if table.label is None else table.label
    held_out = hold_out(label[rows], group, fraction, options.split_seed)
    if held_out.all():
        raise DataError(
            f"{options.path}: group: found {len(set(table.group))} groups, expected more than the "
            f"validation and test groups that valid_fraction {options.valid_fraction} and "
            f"test_fraction {options.test_fraction} hold out; hold out less, or give more data"
        )
    split[rows[held_out]] = name


def _divided_groups(group: Sequence[str], split: Sequence[str]) -> list[str]:
    """Returns the groups with samples in more than one split."""
    splits: dict[str, set[str]] = {}
    for group_name, split_name in zip(group, split, strict=True):
        splits.setdefault(group_name, set()).add(split_name)
    return [name for name, names in splits.items() if len(names) > 1]
