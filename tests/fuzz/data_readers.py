"""Readers of data sets: the sources, and what was prepared from them."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.data import (
    ArraysOptions,
    DataConfig,
    JapaneseVowelsOptions,
    MmsaPickleOptions,
    MultipleFeaturesOptions,
    MultPickleOptions,
    VggsoundHdf5Options,
)
from sft_jax.data.builders import builder_class
from sft_jax.data.builders.multiple_features import VIEWS, file_name
from sft_jax.data.builders.smartwatch_exercises import CHANNELS, KEYS, read_recordings
from sft_jax.data.fake import write_fake
from sft_jax.data.records import SPLITS
from sft_jax.data.sources import Source, prepare
from sft_jax.types import DataError
from tests.fuzz.harness import Reader
from tests.fuzz.zips import write_zip

_SHAPES = {"vision": (6, 4), "audio": (5, 3), "text": (4, 5)}


def _reader(
    source: str, seeds: Callable[[Path], list[Path]], options: Callable[[Path], Any]
) -> Reader:
    """A source that is read as `prepare` reads it, without the writing."""

    def read(path: Path) -> None:
        builder = builder_class(source)(options(path), path.parent / "prepared")
        with builder.resources:
            contents = builder.contents()
            for records in contents.splits.values():
                for record in records:
                    assert 0 <= record["label"] < len(contents.class_names)
            if callable(contents.repairs):
                contents.repairs()

    return Reader(source, seeds, read, (DataError,))


def _arrays(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    entries = {
        "rgb": rng.normal(size=(8, 3, 4)).astype(np.float32),
        "words": rng.integers(0, 9, (8, 5)),
        "label": np.arange(8) % 3,
        "mask/rgb": np.ones((8, 3), bool),
        "length/words": np.arange(8) % 5 + 1,
        "id": np.array([f"sample {row}" for row in range(8)]),
        "group": np.arange(8) // 2,
    }
    folder.mkdir(exist_ok=True)
    packed, plain, directory = folder / "packed.npz", folder / "plain.npz", folder / "arrays"
    np.savez_compressed(packed, **entries)
    np.savez(plain, **entries)
    for name, values in entries.items():
        path = directory / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    return [packed, plain, directory]


def _mult(folder: Path) -> list[Path]:
    kinds = ("mosi", "iemocap", "mosei_emotions")
    return [write_fake(kind, folder / kind, 6, shapes=_SHAPES)[0] for kind in kinds] + [
        _as_protocol(write_fake("mosei", folder / "mosei", 6, shapes=_SHAPES)[0], 2),
        # Large enough for its arrays to stay in the file.
        write_fake("mosi", folder / "long", 9, shapes={**_SHAPES, "vision": (60, 4)})[0],
    ]


def _as_protocol(path: Path, protocol: int) -> Path:
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def _mmsa(folder: Path) -> list[Path]:
    return [
        write_fake("mmsa", folder / "short", 6, shapes=_SHAPES)[0],
        write_fake("mmsa", folder / "long", 9, shapes={**_SHAPES, "vision": (60, 4)})[0],
        _as_protocol(write_fake("mmsa", folder / "old", 6, shapes=_SHAPES)[0], 3),
    ]


def _vggsound(folder: Path) -> list[Path]:
    directory = folder / "vggsound"
    shapes = {"rgb": (3, 4), "spect": (5, 2), "flow": (3, 4)}
    write_fake("vggsound10", directory, 20, shapes=shapes)
    return [directory]


def _vggsound_options(path: Path) -> VggsoundHdf5Options:
    return VggsoundHdf5Options(
        train_path=str(path / "vgg_train.h5py"), test_path=str(path / "vgg_test.h5py")
    )


def _multiple_features(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = {}
    for view, (steps, width) in VIEWS.items():
        rows = [",".join(map(str, range(steps * width + 1)))]
        for label in range(20):
            cells = [f"{value:.1f}" for value in rng.normal(size=steps * width)]
            rows.append(",".join([*cells, str(label % 10)]))
        files[file_name(view)] = "\n".join(rows) + "\n"
    return _folder_and_archive(folder, files)


def _japanese_vowels(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    head = ["#Vowels", "@problemName JapaneseVowels", "@classLabel true 1 2 3", "@data"]
    files = {}
    for role in ("TRAIN", "TEST"):
        rows = []
        for row in range(9):
            series = rng.normal(size=(12, 7 + row))
            columns = [",".join(f"{value:.2f}" for value in own) for own in series]
            rows.append(":".join([*columns, str(row % 3 + 1)]))
        files[f"JapaneseVowels_{role}.ts"] = "\n".join([*head, *rows]) + "\n"
    return _folder_and_archive(folder, files)


def _folder_and_archive(folder: Path, files: dict[str, str]) -> list[Path]:
    directory, archive = folder / "files", folder / "files.whl"
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)
    members = [(f"sets/{name}", text.encode()) for name, text in files.items()]
    archive.write_bytes(write_zip(members))
    return [directory, archive]


def _watch(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    columns = (
        [rng.normal(size=(20 + row, len(CHANNELS))) for row in range(6)],
        np.arange(6) % 3,
        np.arange(6) // 2 + 1,
        (np.arange(6) % 2).astype(float),
        list(CHANNELS),
        ["PEN", "ABD", "FEL"],
    )
    path = folder / "watch_dataset.npy"
    box = np.empty((), object)
    box[()] = dict(zip(KEYS, columns, strict=True))
    np.save(path, box, allow_pickle=True)
    return [path]


def _read_watch(path: Path) -> None:
    recordings, class_names = read_recordings(path)
    assert all(0 <= recording.label < len(class_names) for recording in recordings)


def _prepared(folder: Path) -> list[Path]:
    source, data_dir = _arrays(folder / "source")[0], str(folder / "data")
    options = ArraysOptions(path=str(source), valid_fraction=0.25, test_fraction=0.25)
    info = prepare(DataConfig(source="arrays", options=options, data_dir=data_dir))
    summed = Path(info.directory)
    # Where sums are kept, they find damage before anything is read; strangers need not keep any.
    bare = shutil.copytree(summed, folder / "bare" / summed.name)
    (bare / "checksums.json").unlink()
    return [summed, bare]


def _read_prepared(path: Path) -> None:
    source = Source(path)
    for split in SPLITS:
        if source.info.num_records.get(split):
            for record in source.split(split):
                assert 0 <= record["label"] < source.info.num_classes
            source.ids(split)


def _at(options: Callable[..., Any], **others: Any) -> Callable[[Path], Any]:
    return lambda path: options(path=str(path), **others)


DATA_READERS = (
    _reader("arrays", _arrays, _at(ArraysOptions, valid_fraction=0.25, test_fraction=0.25)),
    _reader("mult_pickle", _mult, _at(MultPickleOptions)),
    _reader("mmsa_pickle", _mmsa, _at(MmsaPickleOptions)),
    _reader("vggsound_hdf5", _vggsound, _vggsound_options),
    _reader("multiple_features", _multiple_features, _at(MultipleFeaturesOptions, folds=2)),
    _reader("japanese_vowels", _japanese_vowels, _at(JapaneseVowelsOptions)),
    Reader("smartwatch_exercises", _watch, _read_watch, (DataError,)),
    Reader("prepared", _prepared, _read_prepared, (DataError,)),
)
