"""What the builders share: names, record layout, metadata, and writing in shards."""

import abc
import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sft_jax.data.records import SPLITS, Contents, DataInfo, ModalityInfo, Record, Records
from sft_jax.data.statistics import Moments
from sft_jax.files.checksums import add_checksum, write_checksums
from sft_jax.files.errors import existing_file
from sft_jax.types import DataError

# Examples of a shard are held in memory while it is written.
SHARD_BYTES = 64 << 20
# Shards that take more in all are only measured: their sums would take seconds at every opening.
SUMMED_BYTES = 256 << 20


# TFDS comes without types, so mypy does not see that its classes take the keyword.
class SourceBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A source as a TFDS builder that neither prepares nor reads with TensorFlow.

    Shards are written as they come: the shuffling of `GeneratorBasedBuilder` needs TensorFlow once
    a split passes 1 GB, and records should keep their order. TFDS writes into a directory of
    another name and renames it when everything is there, so an interrupted run leaves nothing that
    opens.

    A subclass gives `readable` and `contents`, and `source_sha256` where it reads a file.

    Attributes:
        VERSION: to be raised whenever the same options would give other records.
        options: the source's options dataclass.
        resources: what `contents` leaves open for its records to read, until all are written.
    """

    VERSION = tfds.core.Version("1.1.0")
    _contents: Contents  # once `write` has read them
    # There are no downloads whose checksums TFDS would look for beside the code, and its search
    # imports importlib_resources, which it does not declare.
    code_path = None

    def __init_subclass__(cls, *, skip_registration: bool = True):
        """No source is registered: its records are read by the directory they lie in."""
        super().__init_subclass__(skip_registration=skip_registration)

    def __init__(self, options: Any, data_dir: str | os.PathLike):
        """Places the source; nothing is read but the hash of the source file.

        Args:
            options: the source's dataclass of `sft_jax.config.data`.
            data_dir: root of all prepared sources.
        """
        self.options = options
        self.sha256 = self.source_sha256()
        self.resources = contextlib.ExitStack()
        self._root = Path(data_dir).expanduser().absolute()

    @abc.abstractmethod
    def readable(self) -> str:
        """The options in a few characters, for the name of the directory."""

    @abc.abstractmethod
    def contents(self) -> Contents:
        """Reads and checks the source; raises `DataError`."""

    def source_sha256(self) -> str:
        """SHA-256 of the source file, empty for a source without one."""
        return ""

    def identity(self) -> dict[str, Any]:
        """The options that decide what the records are."""
        return dataclasses.asdict(self.options)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides what the records are."""
        parts = [self.name, str(self.VERSION), self.identity(), self.sha256]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def config_name(self) -> str:
        """Name of the prepared directory: the options, readable, and a hash of all of them."""
        words = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.readable())[:80]
        return f"{words}-{self.fingerprint[:12]}"

    @property
    def directory(self) -> Path:
        """Where the prepared files lie, or will."""
        return self._root / self.name / self.config_name / str(self.VERSION)

    def write(self) -> None:
        """Prepares the files; `directory` must not exist.

        Raises:
            DataError: the source cannot be used.
        """
        with self.resources:
            self._contents = self.contents()
            super().__init__(
                data_dir=self._root,
                config=tfds.core.BuilderConfig(name=self.config_name, version=self.VERSION),
            )
            self.download_and_prepare(
                file_format="array_record", download_dir=self.directory.parent / "downloads"
            )
        # TFDS writes it after the sums; who is interrupted here has it unchecked, as before.
        add_checksum(self.directory, "metadata.json")

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Writes the shards and, before the directory gets its name, their sums."""
        super()._download_and_prepare(*args, **kwargs)
        write_checksums(Path(self._data_dir), "*.array_record*", SUMMED_BYTES)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=record_features(self._contents.modalities),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, Record]]]]]:
        contents = self._contents
        tallies = {name: _Tally(contents) for name in SPLITS}
        shards = {
            name: list(self._shards(contents, contents.splits[name], tallies[name]))
            for name in SPLITS
            if len(contents.splits.get(name, ()))
        }
        if "train" not in shards:
            raise DataError(
                f"{self.name}: the training split is empty, expected at least one record; hold out "
                "less, or give more data"
            )
        # TFDS saves the metadata after the last shard, when the tallies are full.
        last = next(reversed(shards))
        shards[last][-1] = self._with_metadata(shards[last][-1], tallies)
        return shards

    def _shards(
        self, contents: Contents, records: Records, tally: "_Tally"
    ) -> Iterator[Callable[[], Iterator[tuple[int, Record]]]]:
        size = max(1, SHARD_BYTES // sum(m.num_bytes for m in contents.modalities))
        for start in range(0, len(records), size):
            stop = min(start + size, len(records))

            def shard(start: int = start, stop: int = stop) -> Iterator[tuple[int, Record]]:
                for index in range(start, stop):
                    record = records[index]
                    tally.add(record)
                    yield index, record

            yield shard

    def _with_metadata(
        self, shard: Callable[[], Iterator[tuple[int, Record]]], tallies: "dict[str, _Tally]"
    ) -> Callable[[], Iterator[tuple[int, Record]]]:
        def final() -> Iterator[tuple[int, Record]]:
            yield from shard()
            self.info.metadata.update(self._data_info(tallies).to_json())

        return final

    def _data_info(self, tallies: "dict[str, _Tally]") -> DataInfo:
        contents = self._contents
        repairs = contents.repairs
        return DataInfo(
            source=self.name,
            class_names=contents.class_names,
            class_values=contents.class_values,
            modalities=contents.modalities,
            statistics={
                name: moments.statistics() for name, moments in tallies["train"].moments.items()
            },
            repairs=repairs() if callable(repairs) else repairs,
            num_records={name: int(tally.classes.sum()) for name, tally in tallies.items()},
            class_counts={name: tuple(tally.classes.tolist()) for name, tally in tallies.items()},
            groups={name: tuple(sorted(tally.groups)) for name, tally in tallies.items()},
            split_units=contents.split_units,
            remarks=contents.remarks,
            options=dataclasses.asdict(self.options),
            source_sha256=self.sha256,
            fingerprint=self.fingerprint,
            directory=str(self.directory),
        )


class PickleBuilder(SourceBuilder, skip_registration=True):
    """A source that is one pickle, at `options.path`.

    Attributes:
        file_name: what the file is usually called, for messages.
    """

    file_name: str

    def file(self) -> Path:
        """The pickle; raises `DataError` if it is not there."""
        what = f"a pickle such as {self.file_name}"
        return existing_file(self.options.path, "data.options.path", what)

    def source_sha256(self) -> str:
        """SHA-256 of the file."""
        return file_sha256(self.file())

    def identity(self) -> dict[str, Any]:
        """The options but for the path, since the contents decide."""
        return {key: value for key, value in super().identity().items() if key != "path"}


class _Tally:
    """What is counted over the records of a split while they are written."""

    def __init__(self, contents: Contents):
        self.classes = np.zeros(len(contents.class_names), np.int64)
        self.groups: set[str] = set()
        self.moments = {
            m.name: Moments.zero(m.feature_dim) for m in contents.modalities if m.kind == "feature"
        }

    def add(self, record: Record) -> None:
        self.classes[record["label"]] += 1
        self.groups.add(record["group"])
        for name, moments in self.moments.items():
            self.moments[name] = moments.add(record["inputs"][name], record["mask"][name])


def record_features(modalities: Sequence[ModalityInfo]) -> tfds.features.FeaturesDict:
    """How a record lies in a shard."""
    return tfds.features.FeaturesDict(
        {
            "inputs": {m.name: _tensor(m.shape, _dtype(m)) for m in modalities},
            "mask": {m.name: _tensor((m.length,), np.bool_) for m in modalities},
            "label": np.int64,
            "value": np.float32,
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
        }
    )


def _tensor(shape: tuple[int, ...], dtype: type[np.generic]) -> tfds.features.Tensor:
    # As bytes: number by number, writing takes more than ten times as long, and reading twice.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)


def _dtype(modality: ModalityInfo) -> type[np.generic]:
    return np.float32 if modality.kind == "feature" else np.int32


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
