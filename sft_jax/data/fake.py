"""Synthetic files in the layouts of the public data sets, for trials without the data.

Names, keys, shapes, dtypes, padding and flaws are those of the real files (docs/data.md). Features
are noise around a direction that depends on the class, so that a model can learn them.
"""

import dataclasses
import math
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32

from sft_jax.config.data import ArraysOptions
from sft_jax.data.records import SPLITS
from sft_jax.types import ConfigError

Shapes = Mapping[str, tuple[int, int]]
Directions = Mapping[str, np.ndarray]
# Of IEMOCAP, and of CMU-MOSEI.
_EMOTIONS = 4
_MOSEI_EMOTIONS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fake:
    """Description of a data set that can be imitated.

    Attributes:
        config: Name of the configuration that reads it.
        files: Names of its files or folders, by the option that takes their path.
        shapes: Time steps and features of each modality.
        size: Default number of training samples.
        num_classes: Number of classes, each of which gets samples.
        write: Function that writes the files, from their paths, this description, the number of
            training samples, the shapes, and a random generator.
    """

    config: str
    files: dict[str, str]
    shapes: Shapes
    size: int
    num_classes: int
    write: Callable[[list[Path], "Fake", int, Shapes, np.random.Generator], None]


def write_fake(
    kind: str, directory: Path, size: int = 0, seed: int = 0, shapes: Shapes | None = None
) -> list[Path]:
    """Writes the files of an imitated data set to a directory, and returns their paths.

    Args:
        kind: Key of `FAKES`.
        directory: Directory of the files, created if needed.
        size: Number of training samples, 0 for the default; other splits are in proportion.
        seed: Seed of everything that is drawn.
        shapes: Time steps and features of modalities that differ from the real ones.

    Raises:
        ConfigError: There are fewer training samples than classes, or a file exists.
    """
    fake = FAKES[kind]
    size = size or fake.size
    if size < fake.num_classes:
        raise ConfigError(
            f"fake_size: given {size} for {kind}, expected at least {fake.num_classes}, one for "
            "each class; raise it"
        )
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in fake.files.values()]
    for path in paths:
        # An existing file may be the real one, which is hard to replace.
        if path.exists():
            raise ConfigError(
                f"fake_dir: given {directory}, where {path.name} is already, expected a folder "
                "without it; choose another, or remove the file"
            )
    rng = np.random.default_rng(seed)
    # A file that was not finished would look like a whole one: its size is that of all samples.
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=directory) as folder:
        unfinished = [Path(folder) / path.name for path in paths]
        fake.write(unfinished, fake, size, {**fake.shapes, **(shapes or {})}, rng)
        for file, path in zip(unfinished, paths, strict=True):
            file.rename(path)
    return paths


def describe_files(paths: Sequence[Path]) -> str:
    """Returns a line for each file, with path and size."""
    sizes = [sum(f.stat().st_size for f in (p, *p.rglob("*")) if f.is_file()) for p in paths]
    return "\n".join(
        f"synthetic    {p} ({size / 1e6:.0f} MB)" for p, size in zip(paths, sizes, strict=True)
    )


def next_command(kind: str, paths: Sequence[Path]) -> str:
    """Returns the command that prepares the files."""
    options = [
        f"--config.data.options.{option}={path}"
        for option, path in zip(FAKES[kind].files, paths, strict=True)
    ]
    command = ["python -m sft_jax.prepare", f"--config=configs/{FAKES[kind].config}.py", *options]
    return " \\\n    ".join(command)


def _vggsound(
    paths: list[Path], fake: Fake, size: int, shapes: Shapes, rng: np.random.Generator
) -> None:
    directions = {m: rng.normal(size=(fake.num_classes, f)) for m, (_, f) in shapes.items()}
    for path, count in zip(paths, (size, -(-size // 3)), strict=True):
        label = rng.permutation(np.arange(count) % fake.num_classes)
        names = [f"sound {c:03d}".encode() for c in label]
        with h5py.File(path, "w") as file:
            file["class_name"] = np.array(names)
            for m, shape in shapes.items():
                dataset = file.create_dataset(m, (count, *shape), "f4")
                for row, c in enumerate(label):
                    dataset[row] = _noise(rng, shape, directions[m][c])


def _mult_sentiment(
    split: str, count: int, shapes: Shapes, directions: Directions, rng: np.random.Generator
) -> dict[str, Any]:
    value = rng.integers(-9, 10, count) / 3
    entries = _left_padded(rng, shapes, directions, value[:, None] / 3)
    entries["labels"] = value.astype(np.float32).reshape(count, 1, 1)
    return {**entries, "id": _clip_names(split, count)}


def _mult_sentiment_and_emotions(
    split: str, count: int, shapes: Shapes, directions: Directions, rng: np.random.Generator
) -> dict[str, Any]:
    """Draws a sentiment, and intensities of which two in three are 0."""
    sentiment = rng.integers(-9, 10, (count, 1)) / 3
    present = rng.random((count, _MOSEI_EMOTIONS)) < 1 / 3
    intensities = present * rng.integers(1, 10, present.shape) / 3
    entries = _left_padded(rng, shapes, directions, np.hstack([sentiment / 3, present]))
    labels = np.hstack([sentiment, intensities]).astype(np.float32)
    return {**entries, "labels": labels[:, None], "id": _clip_names(split, count)}


def _mult_emotion(
    split: str, count: int, shapes: Shapes, directions: Directions, rng: np.random.Generator
) -> dict[str, Any]:
    present = rng.integers(0, 2, (count, _EMOTIONS))
    entries = _left_padded(rng, shapes, directions, present)
    return {**entries, "labels": np.eye(2, dtype=np.int64)[present]}


def _clip_names(split: str, count: int) -> np.ndarray:
    """Returns video, start and end of each clip, as in CMU-MOSI."""
    names = [(f"{split}{i // 4:05d}", f"{i % 4}.5", f"{i % 4 + 1}.25") for i in range(count)]
    return np.array(names, dtype="S")


def _mmsa(
    split: str, count: int, shapes: Shapes, directions: Directions, rng: np.random.Generator
) -> dict[str, Any]:
    value = rng.integers(-9, 10, count) / 3
    entries: dict[str, Any] = {}
    for m, (steps, width) in shapes.items():
        length = rng.integers(max(1, steps // 4), steps + 1, count)
        entries[m] = np.zeros((count, steps, width), np.float32)
        for row, real in enumerate(length):
            offset = directions[m][0] * value[row] / 3
            entries[m][row, :real] = _noise(rng, (int(real), width), offset)
        if m != "text":
            entries[f"{m}_lengths"] = length.tolist()
        else:
            attended = np.arange(steps) < length[:, None]
            ids = np.where(attended, 100, 0)
            entries["text_bert"] = np.stack([ids, attended, 0 * ids], axis=1).astype(np.float32)
    entries["raw_text"] = [f"sentence {i}" for i in range(count)]
    entries["id"] = [f"{split}{i // 4:05d}$_${i % 4}" for i in range(count)]
    entries["regression_labels"] = value.astype(np.float32)
    entries["classification_labels"] = np.sign(value) + 1
    return entries


def _audio_visual(
    paths: list[Path], fake: Fake, size: int, shapes: Shapes, rng: np.random.Generator
) -> None:
    """Writes a directory of `.npy` with samples of all splits: uint8 video, float32 otherwise."""
    (folder,) = paths
    (folder / "length").mkdir(parents=True)
    held_out = ArraysOptions.valid_fraction + ArraysOptions.test_fraction
    count = math.ceil(size / (1 - held_out))
    label = rng.permutation(np.arange(count) % fake.num_classes)
    np.save(folder / "label.npy", label)
    for m, (steps, width) in shapes.items():
        directions = rng.standard_normal((fake.num_classes, width), np.float32)
        length = rng.integers(-(-steps // 2), steps + 1, count)
        np.save(folder / "length" / f"{m}.npy", length)
        dtype = np.uint8 if m == "video" else np.float32
        values = np.lib.format.open_memmap(
            folder / f"{m}.npy", mode="w+", dtype=dtype, shape=(count, steps, width)
        )
        for row, (c, real) in enumerate(zip(label, length, strict=True)):
            steps_of_row = _noise(rng, (int(real), width), directions[c])
            if m == "video":
                steps_of_row = np.clip(128 + 32 * steps_of_row, 0, 255)
            values[row, :real] = steps_of_row
        values.flush()


def _left_padded(
    rng: np.random.Generator, shapes: Shapes, directions: Directions, weights: np.ndarray
) -> dict[str, Any]:
    """Draws features `[n, t, f]` around `weights [n, e] @ directions [e, f]`, padded in front."""
    entries: dict[str, Any] = {}
    for m, (steps, width) in shapes.items():
        values = np.zeros((len(weights), steps, width), np.float32)
        for row, weight in enumerate(weights):
            real = int(rng.integers(max(1, steps // 4), steps + 1))
            offset = weight @ directions[m]
            values[row, steps - real :] = _noise(rng, (real, width), offset)
            # Log energy of silence, as in the real files.
            if m == "audio" and row % 4 == 0:
                values[row, -1, rng.integers(width)] = -np.inf
        entries[m] = values
    return entries


def _noise(
    rng: np.random.Generator, shape: tuple[int, int], offset: np.ndarray
) -> Float32[np.ndarray, "t f"]:
    return rng.standard_normal(shape, np.float32) + offset.astype(np.float32)


def _pickled(
    config: str,
    name: str,
    draw_split: Callable[..., dict[str, Any]],
    num_directions: int = 1,
    **shapes: tuple[int, int],
) -> Fake:
    """Returns a pickle whose features point along some directions `[e, f]` of each modality."""

    def write(
        paths: list[Path], fake: Fake, size: int, shapes: Shapes, rng: np.random.Generator
    ) -> None:
        directions = {m: rng.normal(size=(num_directions, f)) for m, (_, f) in shapes.items()}
        sizes = dict(zip(SPLITS, (size, -(-size // 4), -(-size // 4)), strict=True))
        splits = {
            split: draw_split(split, count, shapes, directions, rng)
            for split, count in sizes.items()
        }
        with open(paths[0], "wb") as file:
            pickle.dump(splits, file, protocol=4)

    return Fake(
        config=config, files={"path": name}, shapes=shapes, size=64, num_classes=1, write=write
    )


def _hdf5(config: str, prefix: str, num_classes: int, size: int) -> Fake:
    return Fake(
        config=config,
        files={"train_path": f"{prefix}_train.h5py", "test_path": f"{prefix}_test.h5py"},
        shapes={"rgb": (38, 1024), "spect": (1200, 128), "flow": (38, 1024)},
        size=size,
        num_classes=num_classes,
        write=_vggsound,
    )


FAKES = {
    "av": Fake(
        config="av_base",
        files={"path": "av"},
        shapes={"audio": (800, 128), "video": (16, 224 * 224 * 3)},
        size=12,
        num_classes=10,
        write=_audio_visual,
    ),
    "vggsound10": _hdf5("vggsound10", "vgg", 10, 60),
    "vggsound100": _hdf5("vggsound100", "vgg100", 100, 200),
    "mosei": _pickled(
        *("mosei", "mosei_senti_data_noalign.pkl", _mult_sentiment),
        vision=(500, 35),
        audio=(500, 74),
        text=(50, 300),
    ),
    "mosei_emotions": _pickled(
        "mosei_emotions",
        "mosei_emotions_data_noalign.pkl",
        _mult_sentiment_and_emotions,
        1 + _MOSEI_EMOTIONS,
        vision=(500, 35),
        audio=(500, 74),
        text=(50, 300),
    ),
    "mosi": _pickled(
        *("mosi", "mosi_data_noalign.pkl", _mult_sentiment),
        vision=(500, 20),
        audio=(375, 5),
        text=(50, 300),
    ),
    "iemocap": _pickled(
        *("iemocap", "iemocap_data_noalign.pkl", _mult_emotion, _EMOTIONS),
        vision=(500, 35),
        audio=(400, 74),
        text=(20, 300),
    ),
    "mmsa": _pickled(
        *("mmsa", "unaligned_50.pkl", _mmsa),
        vision=(500, 20),
        audio=(375, 5),
        text=(50, 768),
    ),
}
