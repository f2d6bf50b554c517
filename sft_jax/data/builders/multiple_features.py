"""UCI Multiple Features: handwritten digits, each described in six ways."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from sft_jax.config.data import MultipleFeaturesOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import Contents, LazyRecords, ModalityInfo, Record
from sft_jax.data.splits import stratified, stratified_folds
from sft_jax.files.archives import Member, members_sha256, numbers, read_members
from sft_jax.files.errors import layout_error

NUM_CLASSES = 10
# View -> time steps and features. Pixels are averages over 2 x 3 windows of an image, of which a
# row is a step; the other views describe the digit as a whole, in one step.
VIEWS = {
    "fac": (1, 216),  # profile correlations
    "fou": (1, 76),  # Fourier coefficients of the shape
    "kar": (1, 64),  # Karhunen-Loeve coefficients
    "mor": (1, 6),  # morphological features
    "pix": (16, 15),
    "zer": (1, 47),  # Zernike moments
}
_AGAIN = "get the file again (docs/data.md)"


class MultipleFeatures(SourceBuilder, skip_registration=True):
    """Handwritten digits on Dutch maps (UCI Multiple Features), in six views.

    200 digits of each of ten classes; rows of the files, one a view, belong together. Folds are
    stratified by class. Every step is real.
    """

    options: MultipleFeaturesOptions

    def members(self) -> dict[str, Member]:
        """The six files, by name."""
        names = [file_name(view) for view in VIEWS]
        return read_members(self.options.path, "data.options.path", names)

    def source_sha256(self) -> str:
        """SHA-256 over the hashes of the six files."""
        return members_sha256(self.members())

    def identity(self) -> dict[str, Any]:
        """The options but for the path, since the contents decide."""
        return {key: value for key, value in super().identity().items() if key != "path"}

    def readable(self) -> str:
        """Which fold is held out, and how validation is."""
        o = self.options
        return f"fold{o.fold}of{o.folds}-valid{o.valid_fraction:g}-split{o.split_seed}"

    def contents(self) -> Contents:
        """Reads all six views, and draws the splits."""
        views, label = read_views(self.members())
        rows = split(label, self.options)
        return Contents(
            modalities=tuple(
                ModalityInfo(name=name, length=steps, feature_dim=features, kind="feature")
                for name, (steps, features) in VIEWS.items()
            ),
            class_names=tuple(map(str, range(NUM_CLASSES))),
            splits={
                name: LazyRecords(len(own), functools.partial(_record, views, label, own))
                for name, own in rows.items()
                if len(own)
            },
        )


def file_name(view: str) -> str:
    """The file of a view."""
    return f"mfeat-{view}.csv"


def read_views(
    members: dict[str, Member],
) -> tuple[dict[str, Float32[np.ndarray, "n t f"]], Int[np.ndarray, " n"]]:
    """Every view, and the class of every row.

    Raises:
        DataError: a file is not as documented, or files disagree.
    """
    views: dict[str, np.ndarray] = {}
    label = np.empty(0, np.int64)
    for view, shape in VIEWS.items():
        member = members[file_name(view)]
        values, own = read_view(member, shape[0] * shape[1])
        first = file_name(next(iter(VIEWS)))
        label = label if views else own
        if len(own) != len(label):
            wanted = f"{len(label)}, as {first} has"
            raise layout_error(member.where, "rows", f"{len(own)} rows", wanted, _AGAIN)
        if (own != label).any():
            row = int(np.flatnonzero(own != label)[0])
            wanted = f"class {label[row]}, as {first} has"
            raise layout_error(member.where, f"row {row}", f"class {own[row]}", wanted, _AGAIN)
        views[view] = values.reshape(-1, *shape)
    return views, label


def read_view(
    member: Member, num_features: int
) -> tuple[Float32[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    """One view: a line of headings, then a row a digit, with its class in the last column.

    Raises:
        DataError: a row has other columns, something else than numbers, or an unknown class; or
            there are no rows.
    """
    lines = member.lines()
    if len(lines) < 2:
        wanted = "a line of headings, and rows below it"
        raise layout_error(member.where, "rows", f"{len(lines)} lines", wanted, _AGAIN)
    rows = []
    for row, line in enumerate(lines, start=-1):
        fields = line.split(",")
        key = f"row {row}" if row >= 0 else "headings"
        if len(fields) != num_features + 1:
            wanted = f"{num_features + 1}: {num_features} features and the class"
            raise layout_error(member.where, key, f"{len(fields)} columns", wanted, _AGAIN)
        if row >= 0:
            rows.append(np.array(numbers(member.where, key, fields)))
    table = np.stack(rows)
    label = table[:, -1]
    wrong = np.flatnonzero(~np.isin(label, np.arange(NUM_CLASSES)))
    if len(wrong):
        key, found = f"row {wrong[0]}", f"class {label[wrong[0]]:g}"
        wanted = f"a whole number from 0 to {NUM_CLASSES - 1} in the last column"
        raise layout_error(member.where, key, found, wanted, _AGAIN)
    return table[:, :-1].astype(np.float32), label.astype(np.int64)


def split(
    label: Int[np.ndarray, " n"], options: MultipleFeaturesOptions
) -> dict[str, Int[np.ndarray, " _"]]:
    """Rows of each split: the fold is for testing, a share of every other class for validation.

    Raises:
        DataError: a class with fewer samples than folds, or than are to be held out.
    """
    counts = np.bincount(label, minlength=NUM_CLASSES)
    if np.min(counts) < options.folds:
        raise layout_error(
            options.path,
            "rows",
            f"{np.min(counts)} of class {np.argmin(counts)}",
            f"at least {options.folds} of every class, one a fold",
            "lower data.options.folds, or get the files again (docs/data.md)",
        )
    tested = stratified_folds(label, options.folds, options.split_seed) == options.fold
    rest = np.flatnonzero(~tested)
    held_out = stratified(label[rest], options.valid_fraction, options.split_seed)
    return {"train": rest[~held_out], "valid": rest[held_out], "test": np.flatnonzero(tested)}


def _record(
    views: dict[str, np.ndarray], label: np.ndarray, rows: np.ndarray, index: int
) -> Record:
    row = int(rows[index])
    name = f"digit{row:04d}"
    return Record(
        inputs={view: values[row] for view, values in views.items()},
        mask={view: np.ones(values.shape[1], bool) for view, values in views.items()},
        label=int(label[row]),
        value=float("nan"),
        id=name,
        group=name,
    )
