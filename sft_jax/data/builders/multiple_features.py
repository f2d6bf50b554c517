"""UCI Multiple Features: handwritten digits in six feature sets."""

import functools

import numpy as np
from jaxtyping import Float32, Int

from sft_jax.config.data import MultipleFeaturesOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import Contents, ModalityInfo, Record, independent_record, select
from sft_jax.data.splits import stratified, stratified_folds
from sft_jax.files import Member, layout_error, members_sha256, parse_numbers, read_members

NUM_CLASSES = 10
# Time steps and features of each view. Pixels are averages over 2 x 3 windows of an image, and each
# row of the image is a step; the other views describe the whole digit, in one step.
VIEWS = {
    "fac": (1, 216),  # profile correlations
    "fou": (1, 76),  # Fourier coefficients of the shape
    "kar": (1, 64),  # Karhunen-Loeve coefficients
    "mor": (1, 6),  # morphological features
    "pix": (16, 15),
    "zer": (1, 47),  # Zernike moments
}
_REMEDY = "get the file again (docs/data.md)"


class MultipleFeatures(SourceBuilder, skip_registration=True):
    """Handwritten digits on Dutch maps (UCI Multiple Features), in six views.

    200 digits of each of ten classes. There is one file per view, and equal rows belong together.
    Folds are stratified by class. Every step is real.
    """

    options: MultipleFeaturesOptions

    def members(self) -> dict[str, Member]:
        """Reads the six files, by name."""
        names = [file_name(view) for view in VIEWS]
        return read_members(self.options.path, "data.options.path", names)

    def source_sha256(self) -> str:
        """Returns the SHA-256 over the hashes of the six files."""
        return members_sha256(self.members())

    def options_summary(self) -> str:
        """Returns the test fold, and the size and seed of the validation split."""
        o = self.options
        return f"fold{o.fold}of{o.folds}-valid{o.valid_fraction:g}-split{o.split_seed}"

    def contents(self) -> Contents:
        """Reads all six views, and draws the splits."""
        views, label = read_views(self.members())
        rows = _split_rows(label, self.options)
        return Contents(
            modalities=tuple(
                ModalityInfo(name=name, length=steps, feature_dim=features, kind="feature")
                for name, (steps, features) in VIEWS.items()
            ),
            class_names=tuple(map(str, range(NUM_CLASSES))),
            splits={
                name: select(part, functools.partial(_read_record, views, label))
                for name, part in rows.items()
            },
        )


def file_name(view: str) -> str:
    """Returns the file name of a view."""
    return f"mfeat-{view}.csv"


def read_views(
    members: dict[str, Member],
) -> tuple[dict[str, Float32[np.ndarray, "n t f"]], Int[np.ndarray, " n"]]:
    """Parses all views, and the class of every row.

    Raises:
        DataError: A file does not follow the format, or files disagree.
    """
    views: dict[str, np.ndarray] = {}
    label = np.empty(0, np.int64)
    for view, shape in VIEWS.items():
        member = members[file_name(view)]
        values, classes = read_view(member, shape[0] * shape[1])
        first = file_name(next(iter(VIEWS)))
        label = label if views else classes
        if len(classes) != len(label):
            expected = f"{len(label)}, as {first} has"
            raise layout_error(member.path, "rows", f"{len(classes)} rows", expected, _REMEDY)
        if (classes != label).any():
            row = int(np.flatnonzero(classes != label)[0])
            key, found = f"row {row}", f"class {classes[row]}"
            raise layout_error(
                member.path, key, found, f"class {label[row]}, as {first} has", _REMEDY
            )
        views[view] = values.reshape(-1, *shape)
    return views, label


def read_view(
    member: Member, num_features: int
) -> tuple[Float32[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    """Parses one view: a line of headings, then one digit a row, with its class in the last column.

    Raises:
        DataError: There are no rows, or a row has other columns, an entry that is no number, or an
            unknown class.
    """
    lines = member.lines()
    if len(lines) < 2:
        expected = "a line of headings, and rows below it"
        raise layout_error(member.path, "rows", f"{len(lines)} lines", expected, _REMEDY)
    rows = []
    for row, line in enumerate(lines, start=-1):
        fields = line.split(",")
        key = f"row {row}" if row >= 0 else "headings"
        if len(fields) != num_features + 1:
            expected = f"{num_features + 1}: {num_features} features and the class"
            raise layout_error(member.path, key, f"{len(fields)} columns", expected, _REMEDY)
        if row >= 0:
            rows.append(np.array(parse_numbers(member.path, key, fields)))
    table = np.stack(rows)
    label = table[:, -1]
    wrong = np.flatnonzero(~np.isin(label, np.arange(NUM_CLASSES)))
    if len(wrong):
        key, found = f"row {wrong[0]}", f"class {label[wrong[0]]:g}"
        expected = f"a whole number from 0 to {NUM_CLASSES - 1} in the last column"
        raise layout_error(member.path, key, found, expected, _REMEDY)
    return table[:, :-1].astype(np.float32), label.astype(np.int64)


def _split_rows(
    label: Int[np.ndarray, " n"], options: MultipleFeaturesOptions
) -> dict[str, Int[np.ndarray, " _"]]:
    """Returns the rows of each split: the test fold, and a stratified fraction of the others.

    Raises:
        DataError: A class has fewer samples than there are folds.
    """
    counts = np.bincount(label, minlength=NUM_CLASSES)
    if np.min(counts) < options.folds:
        found = f"{np.min(counts)} of class {np.argmin(counts)}"
        expected = f"at least {options.folds} of every class, one for each fold"
        remedy = "lower data.options.folds, or get the files again (docs/data.md)"
        raise layout_error(options.path, "rows", found, expected, remedy)
    is_test = stratified_folds(label, options.folds, options.split_seed) == options.fold
    rest = np.flatnonzero(~is_test)
    held_out = stratified(label[rest], options.valid_fraction, options.split_seed)
    return {"train": rest[~held_out], "valid": rest[held_out], "test": np.flatnonzero(is_test)}


def _read_record(views: dict[str, np.ndarray], label: np.ndarray, row: int) -> Record:
    inputs = {view: values[row] for view, values in views.items()}
    mask = {view: np.ones(len(steps), bool) for view, steps in inputs.items()}
    return independent_record(f"digit{row:04d}", int(label[row]), inputs, mask)
