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
from sft_jax.data.records import Contents, LazyRecords, Record
from sft_jax.data.sequence_table import clean, modality_info
from sft_jax.data.splits import stratified
from sft_jax.files.checksums import file_sha256
from sft_jax.files.errors import check_fits, existing_file, explained, layout_error
from sft_jax.files.rows import describe, text

# How many bytes a compressed one can stand for, and how many values may have been left to be zero.
_LARGEST_RATIO = 1032
_ROOM = 1 << 20
# A name in memory, beside what is stored of it.
_NAME_BYTES = 64


class VggsoundHdf5(SourceBuilder, skip_registration=True):
    """Sound events in video: features of VGGSound (arXiv 2004.14368) in a training and a test file.

    Classes are the sorted names of the training file. Validation records are a share of every
    class of that file. All time steps are real; values that are not finite become 0.
    """

    options: VggsoundHdf5Options

    def source_sha256(self) -> str:
        """SHA-256 over the hashes of both files."""
        hashes = [file_sha256(file) for file in self.files()]
        if hashes[0] == hashes[1]:
            raise layout_error(
                self.options.test_path,
                "data.options.test_path",
                "the training file once more",
                "other samples to test on",
                "set it to the test file",
            )
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def identity(self) -> dict:
        """The options but for the paths, since the contents decide."""
        paths = ("train_path", "test_path")
        return {key: value for key, value in super().identity().items() if key not in paths}

    def readable(self) -> str:
        """Name of the training file, and how validation is held out."""
        o = self.options
        stem = Path(o.train_path).stem
        return f"{stem}-{'_'.join(o.modalities)}-valid{o.valid_fraction:g}-split{o.split_seed}"

    def files(self) -> tuple[Path, Path]:
        """The training and the test file."""
        o = self.options
        what = "an HDF5 file such as vgg_train.h5py"
        return (
            existing_file(o.train_path, "data.options.train_path", what),
            existing_file(o.test_path, "data.options.test_path", what.replace("train", "test")),
        )

    def contents(self) -> Contents:
        """Reads the names of classes; features are read when their record is written."""
        train_path, test_path = self.files()
        o = self.options
        train, test = (_open(self, path, o.modalities) for path in (train_path, test_path))
        _check_shapes(train_path, train, test_path, test)
        given = {"train": read_names(train_path, train), "test": read_names(test_path, test)}
        class_names = sorted(set(given["train"]))
        _check_known(test_path, given["test"], train_path, class_names)
        label = {
            name: np.searchsorted(class_names, found) if found else np.zeros(0, np.int64)
            for name, found in given.items()
        }
        held_out = stratified(label["train"], o.valid_fraction, o.split_seed)
        _check_left(train_path, held_out, o)
        rows = {
            "train": ("train", np.flatnonzero(~held_out)),
            "valid": ("train", np.flatnonzero(held_out)),
            "test": ("test", np.arange(len(label["test"]))),
        }
        # By record, so that one that is read twice is counted once.
        repaired: dict[tuple[str, int, str], dict[str, int]] = {}
        sources = {"train": (train_path, train), "test": (test_path, test)}
        return Contents(
            modalities=tuple(modality_info(name, values) for name, values in train.items()),
            class_names=tuple(class_names),
            splits={
                split: LazyRecords(
                    len(chosen),
                    functools.partial(_record, file, *sources[file], label[file], chosen, repaired),
                )
                for split, (file, chosen) in rows.items()
                if len(chosen)
            },
            repairs=functools.partial(_count, repaired),
        )


def read_names(path: Path, datasets: dict[str, h5py.Dataset]) -> list[str]:
    """Class of every sample of an open file.

    Raises:
        DataError: `class_name` is missing, not text, or not as long as the features.
    """
    file = next(iter(datasets.values())).file
    sizes = {name: len(values) for name, values in datasets.items()}
    given = _dataset(path, file, "class_name", 1, "text")
    sizes["class_name"] = len(given)
    if len(set(sizes.values())) != 1:
        first = next(iter(sizes))
        other = next(name for name in sizes if sizes[name] != sizes[first])
        raise layout_error(
            path,
            other,
            f"{sizes[other]} samples",
            f"{sizes[first]}, as {first} has",
            "all datasets of a file have one first axis; get the file again (docs/data.md)",
        )
    return explained(lambda: _texts(path, given), path, "names of classes in class_name")


def _texts(path: Path, given: h5py.Dataset) -> list[str]:
    """One by one where lengths differ: any number of them may be one long text of the file."""
    if h5py.check_string_dtype(given.dtype).length is not None:
        return [text(value) for value in given[:].tolist()]
    names, total, there = [], 0, path.stat().st_size
    for row in range(len(given)):
        names.append(text(given[row]))
        total += len(names[-1])
        if total > there:
            raise layout_error(
                path,
                "class_name",
                f"{total:,} letters in the first {row + 1} names",
                f"no more than the {there:,} bytes of the file",
                "get the file again (docs/data.md)",
            )
    return names


def _open(
    builder: SourceBuilder, path: Path, modalities: tuple[str, ...]
) -> dict[str, h5py.Dataset]:
    file = explained(lambda: h5py.File(path, "r"), path, "a complete HDF5 file")
    builder.resources.enter_context(file)
    return {name: _dataset(path, file, name, 3, "numbers") for name in modalities}


def _dataset(path: Path, file: h5py.File, name: str, rank: int, what: str) -> h5py.Dataset:
    wanted = f"{what} of rank {rank} in {name}"
    return explained(lambda: _checked_dataset(path, file, name, rank, what), path, wanted)


def _checked_dataset(path: Path, file: h5py.File, name: str, rank: int, what: str) -> h5py.Dataset:
    remedy = "get the file again (docs/data.md), or leave it out of data.options.modalities"
    # A link may lead to other files, and so may a dataset.
    link = file.get(name, getlink=True)
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset):
        keys = ", ".join(map(str, file)) or "nothing"
        what = "a group" if found is not None else "a link" if link else f"a file of {keys}"
        raise layout_error(path, name, what, f"a dataset {name}", remedy)
    kind = "text" if h5py.check_string_dtype(found.dtype) else found.dtype.kind
    if found.ndim != rank or kind not in (("text",) if what == "text" else ("f", "i", "u")):
        wanted = f"{what} of rank {rank}"
        raise layout_error(path, name, describe(found), wanted, remedy)
    if found.external or found.is_virtual:
        raise layout_error(path, name, "values in another file", "values in this one", remedy)
    _check_size(path, name, found)
    return found


def _check_size(path: Path, name: str, values: h5py.Dataset) -> None:
    """Refuses sizes that are nothing but said: what is read together must fit in memory."""
    again = "get the file again (docs/data.md)"
    item = values.dtype.itemsize + (_NAME_BYTES if values.ndim == 1 else 8)
    together = len(values) if values.ndim == 1 else math.prod(values.shape[1:])
    check_fits(item * max(together, math.prod(values.chunks or ())), path, name, again)
    stored = values.id.get_storage_size()
    if values.nbytes > _LARGEST_RATIO * stored + _ROOM:
        found = f"{stored} bytes for {describe(values)}"
        raise layout_error(path, name, found, "the values of all samples", again)


def _check_shapes(
    train_path: Path,
    train: dict[str, h5py.Dataset],
    test_path: Path,
    test: dict[str, h5py.Dataset],
) -> None:
    for name, values in train.items():
        if 0 in values.shape:
            remedy = "training needs at least one sample; get the file again (docs/data.md)"
            raise layout_error(train_path, name, describe(values), "samples to train on", remedy)
        if test[name].shape[1:] != values.shape[1:]:
            wanted = f"[n, {values.shape[1]}, {values.shape[2]}], as in {train_path}"
            remedy = "give two files of one set"
            raise layout_error(test_path, name, describe(test[name]), wanted, remedy)


def _check_known(test_path: Path, names: list[str], train_path: Path, known: list[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        wanted = f"the {len(known)} classes of {train_path} alone"
        remedy = "give two files of one set, such as vgg100_train.h5py and vgg100_test.h5py"
        raise layout_error(test_path, "class_name", f"class {shown}", wanted, remedy)


def _check_left(path: Path, held_out: np.ndarray, options: VggsoundHdf5Options) -> None:
    if held_out.all():
        what = f"{len(held_out)} samples, all of them held out"
        wanted = "some to train on"
        remedy = f"lower data.options.valid_fraction, given {options.valid_fraction}"
        raise layout_error(path, "class_name", what, wanted, remedy)


def _record(
    file: str,
    path: Path,
    datasets: dict[str, h5py.Dataset],
    label: np.ndarray,
    rows: np.ndarray,
    repaired: dict[tuple[str, int, str], dict[str, int]],
    index: int,
) -> Record:
    row = int(rows[index])
    inputs = {}
    for name, values in datasets.items():
        raw = explained(functools.partial(values.__getitem__, row), path, f"row {row} of {name}")
        inputs[name], counts = clean(raw)
        if counts:
            repaired[file, row, name] = counts
    name = f"{file}{row:06d}"
    return Record(
        inputs=inputs,
        mask={name: np.ones(len(values), bool) for name, values in inputs.items()},
        label=int(label[row]),
        value=float("nan"),
        id=name,
        group=name,
    )


def _count(repaired: dict[tuple[str, int, str], dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for (_, _, name), counts in repaired.items():
        total.update({f"{name}: {kind} set to 0": count for kind, count in counts.items()})
    return dict(sorted(total.items()))
