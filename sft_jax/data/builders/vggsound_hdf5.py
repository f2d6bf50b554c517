"""VGGSound features in HDF5 files."""

import functools
import hashlib
import math
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from sft_jax.config.data import VggsoundHdf5Options
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import Contents, Record, independent_record, select
from sft_jax.data.sequence_table import clean, modality_info
from sft_jax.data.splits import stratified, train_test_rows
from sft_jax.files import (
    check_fits,
    convert_errors,
    describe_value,
    existing_file,
    file_sha256,
    layout_error,
    to_text,
)

# Largest compression ratio, and size of values that may be unwritten and read as zero.
_MAX_COMPRESSION_RATIO = 1032
_MAX_UNWRITTEN_BYTES = 1 << 20
# Memory of a Python string beside its characters.
_STRING_BYTES = 64
_REMEDY = "get the file again (docs/data.md)"


class VggsoundHdf5(SourceBuilder, skip_registration=True):
    """Sound events in video: features of VGGSound (arXiv 2004.14368) in a training and a test file.

    Classes are the sorted names of the training file. Validation is a fraction of every class of
    that file. All time steps are real; non-finite values become 0.
    """

    options: VggsoundHdf5Options

    def source_sha256(self) -> str:
        """Returns the SHA-256 over the hashes of both files."""
        hashes = [file_sha256(file) for file in self.files()]
        if hashes[0] == hashes[1]:
            key, found = "data.options.test_path", "the training file again"
            expected, remedy = "other samples to test on", "set it to the test file"
            raise layout_error(self.options.test_path, key, found, expected, remedy)
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def options_summary(self) -> str:
        """Returns training file, modalities, and size and seed of the validation split."""
        o = self.options
        stem = Path(o.train_path).stem
        return f"{stem}-{'_'.join(o.modalities)}-valid{o.valid_fraction:g}-split{o.split_seed}"

    def files(self) -> tuple[Path, Path]:
        """Returns the paths of the training and the test file."""
        o = self.options
        expected = "an HDF5 file such as vgg_train.h5py"
        return (
            existing_file(o.train_path, "data.options.train_path", expected),
            existing_file(o.test_path, "data.options.test_path", expected.replace("train", "test")),
        )

    def contents(self) -> Contents:
        """Reads the class names; features are read when their record is written."""
        train_path, test_path = self.files()
        o = self.options
        train, test = (_open(self, path, o.modalities) for path in (train_path, test_path))
        _check_shapes(train_path, train, test_path, test)
        names = {
            "train": _read_class_names(train_path, train),
            "test": _read_class_names(test_path, test),
        }
        class_names = sorted(set(names["train"]))
        _check_known(test_path, names["test"], train_path, class_names)
        label = {
            file: np.searchsorted(class_names, entries) if entries else np.zeros(0, np.int64)
            for file, entries in names.items()
        }
        held_out = stratified(label["train"], o.valid_fraction, o.split_seed)
        _check_not_all_held_out(train_path, held_out, o)
        rows = train_test_rows(held_out, len(label["test"]))
        # Stored by record, so that a record read twice is counted once.
        repaired: dict[tuple[str, int, str], dict[str, int]] = {}
        sources = {
            "train": (train_path, train, label["train"]),
            "test": (test_path, test, label["test"]),
        }
        return Contents(
            modalities=tuple(modality_info(name, values) for name, values in train.items()),
            class_names=tuple(class_names),
            splits={
                split: select(part, functools.partial(_read_record, file, *sources[file], repaired))
                for split, (file, part) in rows.items()
            },
            repairs=functools.partial(_count_repairs, repaired),
        )


def _read_class_names(path: Path, datasets: dict[str, h5py.Dataset]) -> list[str]:
    """Returns the class of every sample; raises `DataError` if they do not fit the features."""
    file = next(iter(datasets.values())).file
    sizes = {name: len(values) for name, values in datasets.items()}
    dataset = _open_dataset(path, file, "class_name", 1, "text")
    sizes["class_name"] = len(dataset)
    if len(set(sizes.values())) != 1:
        first = next(iter(sizes))
        other = next(name for name in sizes if sizes[name] != sizes[first])
        expected = f"{sizes[first]}, as {first} has"
        remedy = f"all datasets of a file have one first axis; {_REMEDY}"
        raise layout_error(path, other, f"{sizes[other]} samples", expected, remedy)
    with convert_errors(path, "names of classes in class_name"):
        return _read_texts(path, dataset)


def _read_texts(path: Path, dataset: h5py.Dataset) -> list[str]:
    """Reads text, one by one if lengths vary: all rows may refer to the same long text."""
    if h5py.check_string_dtype(dataset.dtype).length is not None:
        return [to_text(value) for value in dataset[:].tolist()]
    names, total, file_size = [], 0, path.stat().st_size
    for row in range(len(dataset)):
        names.append(to_text(dataset[row]))
        total += len(names[-1])
        if total > file_size:
            found = f"{total:,} letters in the first {row + 1} names"
            expected = f"no more than the {file_size:,} bytes of the file"
            raise layout_error(path, "class_name", found, expected, _REMEDY)
    return names


def _open(
    builder: SourceBuilder, path: Path, modalities: tuple[str, ...]
) -> dict[str, h5py.Dataset]:
    with convert_errors(path, "a complete HDF5 file"):
        file = h5py.File(path, "r")
    builder.resources.enter_context(file)
    return {name: _open_dataset(path, file, name, 3, "numbers") for name in modalities}


def _open_dataset(path: Path, file: h5py.File, name: str, rank: int, kind: str) -> h5py.Dataset:
    """Returns a dataset of `text` or `numbers`; raises `DataError` if it is anything else."""
    remedy = f"{_REMEDY}, or leave it out of data.options.modalities"
    expected = f"{kind} of rank {rank}"
    with convert_errors(path, f"{expected} in {name}"):
        # A soft or external link may lead to another file.
        link = file.get(name, getlink=True)
        item = file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(item, h5py.Dataset):
            keys = ", ".join(map(str, file)) or "nothing"
            found = "a group" if item is not None else "a link" if link else f"a file of {keys}"
            raise layout_error(path, name, found, f"a dataset {name}", remedy)
        item_kind = "text" if h5py.check_string_dtype(item.dtype) else item.dtype.kind
        if item.ndim != rank or item_kind not in (("text",) if kind == "text" else "fiu"):
            raise layout_error(path, name, describe_value(item), expected, remedy)
        # A dataset may also store its values in another file.
        if item.external or item.is_virtual:
            raise layout_error(path, name, "values in another file", "values in this one", remedy)
        _check_size(path, name, item)
        return item


def _check_size(path: Path, name: str, values: h5py.Dataset) -> None:
    """Checks that what is read at once fits in memory, and that the file can hold all values."""
    item = values.dtype.itemsize + (_STRING_BYTES if values.ndim == 1 else 8)
    count = len(values) if values.ndim == 1 else math.prod(values.shape[1:])
    check_fits(item * max(count, math.prod(values.chunks or ())), path, name, _REMEDY)
    stored = values.id.get_storage_size()
    if values.nbytes > _MAX_COMPRESSION_RATIO * stored + _MAX_UNWRITTEN_BYTES:
        found = f"{stored} bytes for {describe_value(values)}"
        raise layout_error(path, name, found, "the values of all samples", _REMEDY)


def _check_shapes(
    train_path: Path,
    train: dict[str, h5py.Dataset],
    test_path: Path,
    test: dict[str, h5py.Dataset],
) -> None:
    for name, values in train.items():
        if 0 in values.shape:
            remedy = f"training needs at least one sample; {_REMEDY}"
            raise layout_error(
                train_path, name, describe_value(values), "samples to train on", remedy
            )
        if test[name].shape[1:] != values.shape[1:]:
            expected = f"[n, {values.shape[1]}, {values.shape[2]}], as in {train_path}"
            remedy = "give two files of one set"
            raise layout_error(test_path, name, describe_value(test[name]), expected, remedy)


def _check_known(test_path: Path, names: list[str], train_path: Path, known: list[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        expected = f"the {len(known)} classes of {train_path} alone"
        remedy = "give two files of one set, such as vgg100_train.h5py and vgg100_test.h5py"
        raise layout_error(test_path, "class_name", f"class {shown}", expected, remedy)


def _check_not_all_held_out(path: Path, held_out: np.ndarray, options: VggsoundHdf5Options) -> None:
    if held_out.all():
        found = f"{len(held_out)} samples, all of them held out"
        remedy = f"lower data.options.valid_fraction, given {options.valid_fraction}"
        raise layout_error(path, "class_name", found, "some to train on", remedy)


def _read_record(
    file: str,
    path: Path,
    datasets: dict[str, h5py.Dataset],
    label: np.ndarray,
    repaired: dict[tuple[str, int, str], dict[str, int]],
    row: int,
) -> Record:
    inputs = {}
    for name, values in datasets.items():
        with convert_errors(path, f"row {row} of {name}"):
            raw = values[row]
        inputs[name], counts = clean(raw)
        if counts:
            repaired[file, row, name] = counts
    mask = {name: np.ones(len(steps), bool) for name, steps in inputs.items()}
    return independent_record(f"{file}{row:06d}", int(label[row]), inputs, mask)


def _count_repairs(repaired: dict[tuple[str, int, str], dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for (_, _, name), counts in repaired.items():
        total.update({f"{name}: {kind} set to 0": count for kind, count in counts.items()})
    return dict(sorted(total.items()))
