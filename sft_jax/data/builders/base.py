"""Base class of the sources, and the layout of prepared records."""

import abc
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Num

from sft_jax.config.data import path_options
from sft_jax.data.records import (
    SPLITS,
    Contents,
    DataInfo,
    ModalityStatistics,
    Record,
)
from sft_jax.files import add_checksum, write_checksums
from sft_jax.types import DataError

# A shard is held in memory while it is written.
SHARD_BYTES = 64 << 20
# Total size of shards up to which they are hashed: larger ones would take seconds to open.
MAX_HASHED_BYTES = 256 << 20


# TFDS comes without types, so mypy does not see that its classes take the keyword.
class SourceBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Source of records, as a TFDS builder that works without TensorFlow.

    Records are written in order: the shuffling of `GeneratorBasedBuilder` needs TensorFlow for a
    split above 1 GB. TFDS writes to a temporary directory and renames it at the end, so an
    interrupted run leaves nothing that can be opened.

    A subclass implements `options_summary` and `contents`, and `source_sha256` if it reads files.

    Attributes:
        VERSION: Version, raised whenever the same options give other records.
        options: Options dataclass of the source.
        resources: Files that `contents` leaves open until all records are written.
    """

    VERSION = tfds.core.Version("1.1.0")
    # Set by `write`.
    _contents: Contents
    _tallies: "dict[str, _Tally]"
    # Keeps TFDS from searching for checksums of downloads beside the code; the search imports
    # importlib_resources, which TFDS does not declare.
    code_path = None

    def __init_subclass__(cls, *, skip_registration: bool = True):
        """Defines a source without registering it; records are read from their directory."""
        super().__init_subclass__(skip_registration=skip_registration)

    def __init__(self, options: Any, data_dir: str | os.PathLike):
        """Hashes the source file; nothing else is read.

        Options are an options dataclass of `sft_jax.config.data`; `data_dir` holds all prepared
        sources.
        """
        self.options = options
        self.sha256 = self.source_sha256()
        self.resources = contextlib.ExitStack()
        self._root = Path(data_dir).expanduser().absolute()

    @abc.abstractmethod
    def options_summary(self) -> str:
        """Returns the options in a few characters, for the name of the directory."""

    @abc.abstractmethod
    def contents(self) -> Contents:
        """Reads and checks the source; raises `DataError` if it cannot be used."""

    def source_sha256(self) -> str:
        """Returns the SHA-256 of the source file, empty for a source without one."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Returns the options that determine the records: all but paths."""
        paths = path_options(self.options)
        options = dataclasses.asdict(self.options)
        return {name: value for name, value in options.items() if name not in paths}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that determines the records."""
        parts = [self.name, str(self.VERSION), self.identity(), self.sha256]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def config_name(self) -> str:
        """Name of the prepared directory: summary and hash of the options."""
        words = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.options_summary())[:80]
        return f"{words}-{self.fingerprint[:12]}"

    @property
    def directory(self) -> Path:
        """Directory of the prepared files, which need not exist yet."""
        return self._root / self.name / self.config_name / str(self.VERSION)

    def write(self) -> None:
        """Writes the prepared files to `directory`, which must not exist.

        Raises:
            DataError: The source cannot be used.
        """
        with self.resources:
            self._contents = self.contents()
            self._tallies = {name: _Tally(self._contents) for name in SPLITS}
            super().__init__(
                data_dir=self._root,
                config=tfds.core.BuilderConfig(name=self.config_name, version=self.VERSION),
            )
            self.download_and_prepare(
                file_format="array_record", download_dir=self.directory.parent / "downloads"
            )
        # TFDS writes the metadata after the checksums; an interruption here leaves it unchecked.
        add_checksum(self.directory, "metadata.json")

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Writes the shards and their checksums, before the directory gets its final name."""
        super()._download_and_prepare(*args, **kwargs)
        self.info.metadata.update(self._data_info().to_json())
        write_checksums(Path(self._data_dir), "*.array_record*", MAX_HASHED_BYTES)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=record_features(self._contents),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, Record]]]]]:
        splits = self._contents.splits
        if not splits["train"]:
            raise DataError(
                f"{self.name}: the training split is empty, expected at least one record; hold out "
                "less, or give more data"
            )
        return {name: list(self._shards(name)) for name in SPLITS if splits.get(name)}

    def _shards(self, split: str) -> Iterator[Callable[[], Iterator[tuple[int, Record]]]]:
        records, tally = self._contents.splits[split], self._tallies[split]
        size = max(1, SHARD_BYTES // sum(m.num_bytes for m in self._contents.modalities))

        def shard(positions: range) -> Iterator[tuple[int, Record]]:
            for index in positions:
                record = records[index]
                tally.add(record)
                yield index, record

        for start in range(0, len(records), size):
            yield functools.partial(shard, range(start, min(start + size, len(records))))

    def _data_info(self) -> DataInfo:
        contents, tallies = self._contents, self._tallies
        repairs = contents.repairs
        return DataInfo(
            source=self.name,
            class_names=contents.class_names,
            class_values=contents.class_values,
            label_names=contents.label_names,
            value_names=contents.value_names,
            has_weight=contents.has_weight,
            modalities=contents.modalities,
            statistics={
                name: moments.statistics() for name, moments in tallies["train"].moments.items()
            },
            repairs=repairs() if callable(repairs) else repairs,
            num_records={name: tally.size for name, tally in tallies.items()},
            class_counts={name: tuple(tally.classes.tolist()) for name, tally in tallies.items()},
            groups={name: tuple(sorted(tally.groups)) for name, tally in tallies.items()},
            split_units=contents.split_units,
            remarks=contents.remarks,
            options=dataclasses.asdict(self.options),
            source_sha256=self.sha256,
            fingerprint=self.fingerprint,
            directory=str(self.directory),
        )


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviations of time steps, in float64.

    Deviations from the mean are stored because the difference of two sums of squares loses the
    variance of a feature with a large offset.
    """

    count: int
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def zero(cls, feature_dim: int) -> "Moments":
        """Returns the moments of no time steps."""
        return cls(0, np.zeros(feature_dim), np.zeros(feature_dim))

    def add(self, steps: Num[np.ndarray, "t f"], mask: Bool[np.ndarray, "t"]) -> "Moments":
        """Returns the moments with another record (pairwise update of Chan et al., 1983)."""
        real = steps[mask].astype(np.float64)
        if not len(real):
            return self
        mean = real.mean(0)
        count = self.count + len(real)
        delta = mean - self.mean
        return Moments(
            count,
            self.mean + delta * (len(real) / count),
            self.deviations
            + ((real - mean) ** 2).sum(0)
            + delta**2 * (self.count * len(real) / count),
        )

    def statistics(self) -> ModalityStatistics:
        """Returns mean, standard deviation and root mean square; zeros without time steps."""
        variance = self.deviations / max(self.count, 1)
        return ModalityStatistics(
            mean=tuple(self.mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
            rms=float(np.sqrt(np.mean(variance + self.mean**2))),
            count=self.count,
        )


class _Tally:
    """Counts and moments of a split, updated while its records are written."""

    def __init__(self, contents: Contents):
        self.size = 0
        self.classes = np.zeros(len(contents.class_names), np.int64)
        self.groups: set[str] = set()
        self.moments = {
            m.name: Moments.zero(m.feature_dim) for m in contents.modalities if m.kind == "feature"
        }

    def add(self, record: Record) -> None:
        self.size += 1
        if len(self.classes):
            self.classes[record["label"]] += 1
        self.groups.add(record["group"])
        for name, moments in self.moments.items():
            self.moments[name] = moments.add(record["inputs"][name], record["mask"][name])


def record_features(contents: Contents | DataInfo) -> tfds.features.FeaturesDict:
    """Returns the stored layout of a record."""
    modalities = contents.modalities
    # Compared with lists of numbers, bytes are written ten times and read twice as fast.
    tensor = functools.partial(tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES)
    dtypes = {"feature": np.float32, "token": np.int32}
    targets: dict[str, Any] = {"value": np.float32}
    if len(contents.value_names) > 1:
        targets["value"] = tensor(shape=(len(contents.value_names),), dtype=np.float32)
    if contents.label_names:
        targets["labels"] = tensor(shape=(len(contents.label_names),), dtype=np.float32)
    if contents.has_weight:
        targets["weight"] = np.float32
    return tfds.features.FeaturesDict(
        {
            "inputs": {m.name: tensor(shape=m.shape, dtype=dtypes[m.kind]) for m in modalities},
            "mask": {m.name: tensor(shape=(m.length,), dtype=np.bool_) for m in modalities},
            "label": np.int64,
            **targets,
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
        }
    )
