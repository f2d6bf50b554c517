"""A user's own arrays, prepared."""

import functools
import hashlib

import numpy as np
from jaxtyping import Int

from sft_jax.config.data import ArraysOptions
from sft_jax.data.array_entries import source_files
from sft_jax.data.arrays import ArrayTable, read_arrays
from sft_jax.data.builders.base import SourceBuilder, file_sha256
from sft_jax.data.records import Contents, LazyRecords, Record, Records
from sft_jax.types import DataError


class Arrays(SourceBuilder, skip_registration=True):
    """Samples of `.npz` files or directories of `.npy`; see `sft_jax.config.data.ArraysOptions`."""

    options: ArraysOptions

    def source_sha256(self) -> str:
        """SHA-256 of the file, or over the names and hashes of the files of a directory."""
        return arrays_sha256(self.options.path)

    def identity(self) -> dict:
        """The options but for the path, since the contents decide."""
        return {key: value for key, value in super().identity().items() if key != "path"}

    def readable(self) -> str:
        """Name of the file, and how it is split."""
        o = self.options
        stem = source_files(o.path).root.stem
        return f"{stem}-valid{o.valid_fraction:g}-test{o.test_fraction:g}-split{o.split_seed}"

    def contents(self) -> Contents:
        """Reads, checks and splits the arrays."""
        table = read_arrays(self.options.path, require_label=True)
        groups = split_groups(sorted(set(table.group)), self.options)
        assert table.label is not None  # as asked for
        splits: dict[str, Records] = {}
        for name, members in groups.items():
            chosen = set(members)
            rows = [row for row, group in enumerate(table.group) if group in chosen]
            splits[name] = LazyRecords(len(rows), functools.partial(_row, table, rows))
        return Contents(
            modalities=table.modalities,
            class_names=name_classes(table.label, self.options),
            splits=splits,
            repairs=table.repairs,
            split_units=groups,
        )


def _row(table: ArrayTable, rows: list[int], index: int) -> Record:
    return table[rows[index]]


def name_classes(label: Int[np.ndarray, "n"], options: ArraysOptions) -> tuple[str, ...]:
    """The names given, or numbers from 0 to the largest label.

    Raises:
        DataError: labels reach beyond the names given.
    """
    num_classes = int(label.max()) + 1
    if not options.class_names:
        return tuple(str(c) for c in range(num_classes))
    if num_classes > len(options.class_names):
        raise DataError(
            f"{options.path}: label: found class {num_classes - 1}, expected at most "
            f"{len(options.class_names) - 1} for the {len(options.class_names)} names in "
            "data.options.class_names; name every class"
        )
    return options.class_names


def split_groups(groups: list[str], options: ArraysOptions) -> dict[str, tuple[str, ...]]:
    """Holds groups out, drawn by `options.split_seed`; each split is sorted.

    A fraction above zero holds out at least one group.

    Raises:
        DataError: nothing is left to train on.
    """
    order = np.random.default_rng(options.split_seed).permutation(len(groups)).tolist()
    sizes = [
        max(1, round(fraction * len(groups))) if fraction else 0
        for fraction in (options.test_fraction, options.valid_fraction)
    ]
    if sum(sizes) >= len(groups):
        raise DataError(
            f"{options.path}: group: found {len(groups)} groups (or samples), expected more than "
            f"the {sizes[1]} validation and {sizes[0]} test groups that valid_fraction "
            f"{options.valid_fraction} and test_fraction {options.test_fraction} hold out; hold "
            "out less, or give more data"
        )
    bounds = np.cumsum(sizes)
    parts = {
        "train": order[bounds[1] :],
        "valid": order[bounds[0] : bounds[1]],
        "test": order[: bounds[0]],
    }
    return {name: tuple(sorted(groups[i] for i in part)) for name, part in parts.items()}


def arrays_sha256(path: str) -> str:
    """SHA-256 of an `.npz` file, or over the names and hashes of a directory's `.npy` files."""
    source = source_files(path)
    if source.root.is_file():
        return file_sha256(source.root)
    lines = [f"{file_sha256(file)} {key}" for key, file in sorted(source.entries.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
