"""Shoulder exercises recorded by a smartwatch, as distributed with the `seglearn` package."""

import dataclasses
import functools
import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.data import SmartwatchOptions
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.records import (
    SPLITS,
    Contents,
    LazyRecords,
    ModalityInfo,
    Record,
    Records,
    fixed_length,
)
from sft_jax.files import convert_errors, file_sha256, layout_error, load_npy_object
from sft_jax.types import DataError

KEYS = ("X", "y", "subject", "side", "X_labels", "y_labels")
SAMPLING_RATE = 50.0
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
# seglearn's documentation of `load_watch`: "the extremity side, 1 = right, 0 = left".
SIDES = ("left", "right")
_REMEDY = "reinstall seglearn to get its file again, or choose options that fit"


@dataclasses.dataclass(frozen=True)
class Recording:
    """One set of repetitions: `samples [t, 6]` at 50 Hz, accelerometer in g, gyroscope in rad/s."""

    name: str
    samples: np.ndarray
    label: int
    subject: int


class SmartwatchExercises(SourceBuilder, skip_registration=True):
    """Smartwatch recordings of shoulder exercises, cut into windows.

    "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
    smartwatch" (arXiv 1802.01489): ten subjects, both arms, seven exercises, 140 recordings of
    19 to 52 s. The file ships in the `seglearn` package (BSD licence), which is located but not
    imported. Modalities `accelerometer` and `gyroscope`, three axes each.
    """

    options: SmartwatchOptions

    def source_sha256(self) -> str:
        """Returns the SHA-256 of the file in the installed package."""
        return file_sha256(find_file())

    def identity(self) -> dict[str, Any]:
        """Returns the options, without those of cross-validation if it is off."""
        options = super().identity()
        if not self.options.folds:
            for name in ("folds", "fold", "held_out"):
                del options[name]
        return options

    def options_summary(self) -> str:
        """Returns window, step, and the held-out part."""
        o = self.options
        test = f"{o.held_out}{o.fold}of{o.folds}" if o.folds else f"test{o.test_subjects}"
        return f"window{o.window}-step{o.step}-{test}-valid{o.valid_subjects}-split{o.split_seed}"

    def contents(self) -> Contents:
        """Reads the file, holds out subjects or intervals, and cuts windows."""
        path = find_file()
        recordings, class_names = read_recordings(path)
        options = self.options
        subjects = sorted({r.subject for r in recordings})
        members = dict.fromkeys(SPLITS, tuple(subjects))
        if options.held_out == "subjects":
            members = split_subjects(subjects, options, str(path))
        intervals: dict[str, list] = {name: [] for name in SPLITS}
        for recording in recordings:
            length = len(recording.samples)
            parts = {key: [(0, length)] for key in SPLITS}
            if options.held_out == "time":
                parts = split_time(length, options)
            for name in SPLITS:
                if recording.subject in members[name]:
                    intervals[name] += [(recording, *interval) for interval in parts[name]]
        return Contents(
            modalities=tuple(
                ModalityInfo(
                    name=name,
                    length=options.window,
                    feature_dim=3,
                    kind="feature",
                    sampling_rate=SAMPLING_RATE,
                )
                for name in ("accelerometer", "gyroscope")
            ),
            class_names=class_names,
            splits={name: _cut_windows(part, options) for name, part in intervals.items()},
            split_units={
                name: tuple(f"subject{subject:02d}" for subject in part)
                for name, part in members.items()
            },
        )


def find_file() -> Path:
    """Returns the data file of the installed `seglearn`, without importing it.

    Raises:
        DataError: The package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("seglearn")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    for root in roots:
        path = Path(root) / "data" / "watch_dataset.npy"
        if path.is_file():
            return path
    found = f"seglearn at {roots[0]} without data/watch_dataset.npy" if roots else "no seglearn"
    raise DataError(
        f"smartwatch_exercises: found {found}, expected the file that package ships; run "
        "pip install 'sft_jax[demo]'"
    )


def read_recordings(path: Path) -> tuple[list[Recording], tuple[str, ...]]:
    """Reads and checks the data file.

    Returns:
        The recordings, and the names of the classes.

    Raises:
        DataError: A key is missing, or ranks, lengths, labels or values are not as documented.
    """
    data = load_npy_object(path)
    data = data.item() if data.shape == () else data
    with convert_errors(path, "recordings as they are documented"):
        return _parse_recordings(path, data)


def _parse_recordings(path: Path, data: Any) -> tuple[list[Recording], tuple[str, ...]]:
    if not isinstance(data, dict) or not set(KEYS) <= set(data):
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise layout_error(path, "file", found, f"a dict with keys {', '.join(KEYS)}", _REMEDY)
    if tuple(data["X_labels"]) != CHANNELS:
        raise layout_error(path, "X_labels", list(data["X_labels"]), list(CHANNELS), _REMEDY)
    class_names = tuple(str(name) for name in data["y_labels"])
    codes = {"y": len(class_names), "subject": 100, "side": len(SIDES)}
    columns = {key: _check_codes(path, key, data[key], bound) for key, bound in codes.items()}
    lengths = {"X": len(data["X"])} | {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1 or not lengths["X"]:
        key, found = "X, y, subject, side", f"lengths {lengths}"
        raise layout_error(path, key, found, "one length above 0", _REMEDY)
    recordings = []
    for i, samples in enumerate(data["X"]):
        _check_samples(path, f"X[{i}]", samples)
        label, subject = int(columns["y"][i]), int(columns["subject"][i])
        side = SIDES[columns["side"][i]]
        name = f"subject{subject:02d}_{side}_{class_names[label]}_rec{i:03d}"
        recordings.append(Recording(name, samples.astype(np.float32), label, subject))
    return recordings, class_names


def split_subjects(
    subjects: list[int], options: SmartwatchOptions, where: str
) -> dict[str, tuple[int, ...]]:
    """Draws the subjects of each split in random order; returns each split sorted.

    Raises:
        DataError: There are too few subjects for the held-out ones or the folds, and for training.
    """
    order = np.random.default_rng(options.split_seed).permutation(sorted(subjects)).tolist()
    num_test = options.test_subjects
    if options.folds:
        sizes = [len(part) for part in np.array_split(order, options.folds)]
        first, num_test = sum(sizes[: options.fold]), sizes[options.fold]
        # The test fold comes first, followed by the folds after it.
        order = order[first:] + order[:first]
    held_out = num_test + options.valid_subjects
    if len(subjects) <= held_out or not num_test:
        expected = f"more than the {held_out} that are held out, and at least one for each fold"
        raise layout_error(where, "subject", f"{len(subjects)} subjects", expected, _REMEDY)
    parts = {"train": order[held_out:], "valid": order[num_test:held_out], "test": order[:num_test]}
    return {name: tuple(sorted(part)) for name, part in parts.items()}


def split_time(length: int, options: SmartwatchOptions) -> dict[str, list[tuple[int, int]]]:
    """Returns the intervals `(start, stop)` of each split in a recording of `length` samples.

    The recording is cut into `options.folds` intervals; adjacent ones of a split are joined.
    """
    splits = ["train"] * options.folds
    splits[options.fold] = "test"
    if options.valid_subjects:
        splits[(options.fold + 1) % options.folds] = "valid"
    edges = [length * fold // options.folds for fold in range(options.folds + 1)]
    intervals: dict[str, list[tuple[int, int]]] = {name: [] for name in SPLITS}
    for split, (start, stop) in zip(splits, itertools.pairwise(edges), strict=True):
        if intervals[split] and intervals[split][-1][1] == start:
            start = intervals[split].pop()[0]
        intervals[split].append((start, stop))
    return intervals


def window_starts(length: int, window: int, step: int) -> range:
    """Returns the starts of full windows, or of one padded window if the recording is shorter."""
    return range(0, max(length - window, 0) + 1, step)


def _cut_windows(
    intervals: list[tuple[Recording, int, int]], options: SmartwatchOptions
) -> Records:
    """Cuts every interval `(recording, start, stop)` into windows inside it."""
    cuts = [
        (recording, start + offset, min(start + offset + options.window, stop))
        for recording, start, stop in intervals
        for offset in window_starts(stop - start, options.window, options.step)
    ]
    return LazyRecords(len(cuts), functools.partial(_read_window, cuts, options.window))


def _read_window(cuts: list[tuple[Recording, int, int]], window: int, index: int) -> Record:
    recording, start, stop = cuts[index]
    samples = recording.samples[start:stop]
    samples, mask = fixed_length(samples, np.ones(len(samples), bool), window)
    return Record(
        inputs={"accelerometer": samples[:, :3], "gyroscope": samples[:, 3:]},
        mask={"accelerometer": mask, "gyroscope": mask},
        label=recording.label,
        value=math.nan,
        id=f"{recording.name}_t{start:05d}",
        group=recording.name,
    )


def _check_codes(path: Path, key: str, values: Any, bound: int) -> np.ndarray:
    """Converts values to integers from 0 to below `bound`; raises `DataError` for others."""
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        found = f"{values.dtype} of rank {values.ndim}"
        raise layout_error(path, key, found, "numbers of rank 1", _REMEDY)
    wrong = ~((values >= 0) & (values < bound) & (np.floor(values) == values))
    if wrong.any():
        expected = f"whole numbers from 0 to {bound - 1}"
        raise layout_error(path, key, f"{values[wrong][0]}", expected, _REMEDY)
    return values.astype(np.int64)


def _check_samples(path: Path, key: str, samples: Any) -> None:
    shape, dtype = np.shape(samples), getattr(samples, "dtype", np.dtype(object))
    if len(shape) != 2 or shape[1] != len(CHANNELS) or not shape[0] or dtype.kind != "f":
        expected = f"floats of shape [t, {len(CHANNELS)}]"
        raise layout_error(path, key, f"{dtype} of shape {shape}", expected, _REMEDY)
    if not np.isfinite(samples).all():
        raise layout_error(path, key, "NaN or infinity", "finite samples", _REMEDY)
