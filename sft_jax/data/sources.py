"""Prepared sources: written once as ArrayRecord, then read with random access."""

import contextlib
import functools
import glob
import io
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from sft_jax.config.data import DataConfig
from sft_jax.data.builders import SourceBuilder, base, builder_class
from sft_jax.data.prepared import open_shards, read_info
from sft_jax.data.records import SPLITS, DataInfo, Records
from sft_jax.files import find_damage
from sft_jax.types import DataError, Target

# Splits below this size stay decoded in memory, since decoding a record takes longer than training
# a small model on it.
MAX_CACHED_BYTES = 512 << 20


def prepare(config: DataConfig, *, force: bool = False) -> DataInfo:
    """Writes the records of a source to `config.data_dir`, unless they exist or `force` is set.

    Raises:
        DataError: The source cannot be used.
    """
    return _prepare(_builder(config), force)


def _prepare(builder: SourceBuilder, force: bool = False) -> DataInfo:
    # The directory is named after the source file, which may have been renamed since.
    prepared = _find_prepared(builder.directory.parents[1], builder.fingerprint)
    if prepared is not None and not force:
        return read_info(prepared)
    for directory in {prepared or builder.directory, builder.directory}:
        if force and directory.exists():
            # Renamed first, so that an interrupted removal leaves no incomplete directory to open.
            removed = directory.with_name(f"removed.{uuid.uuid4().hex}")
            directory.rename(removed)
            shutil.rmtree(removed)
    if not _is_prepared(builder.directory):
        try:
            with _silence_tfds():
                builder.write()
        # ArrayRecord raises RuntimeError for a file that cannot be written.
        except (OSError, RuntimeError) as error:
            # Another process may have finished the same directory first.
            if not _is_prepared(builder.directory):
                raise DataError(
                    f"{builder.directory}: could not be written ({error}); see that the disk has "
                    "room and may be written to, or choose another data.data_dir (--data_dir)"
                ) from error
    return read_info(builder.directory)


def open_source(config: DataConfig, fingerprint: str = "") -> "Source":
    """Opens a source, which is prepared first if necessary.

    Prepared data with a known fingerprint are opened without reading the source file, which may
    have moved.

    Raises:
        DataError: The source cannot be used.
    """
    root = Path(config.data_dir).expanduser() / builder_class(config.source).name
    prepared = _find_prepared(root, fingerprint) if fingerprint else None
    return Source(prepared or Path(prepare(config).directory))


def open_source_of_run(config: DataConfig, fingerprint: str) -> "Source":
    """Opens the records that a run was trained on, even if an earlier version prepared them.

    A newer version may make other records of the same file and options, such as another split.
    Those with the fingerprint of the run are used if they are still in `config.data_dir` and the
    source file is the same.

    Raises:
        DataError: The source cannot be used.
    """
    builder = _builder(config)
    if builder.fingerprint != fingerprint:
        directory = _find_prepared(builder.directory.parents[1], fingerprint)
        if directory is not None and _matches(read_info(directory), builder, fingerprint):
            return Source(directory)
    return Source(Path(_prepare(builder).directory))


def _matches(info: DataInfo, builder: SourceBuilder, fingerprint: str) -> bool:
    """Returns whether records have a fingerprint, and the file and options of a builder."""
    options = json.loads(json.dumps(builder.identity()))
    stored = {key: value for key, value in info.options.items() if key in options}
    return (
        info.fingerprint == fingerprint
        and info.source_sha256 == builder.sha256
        and stored == {key: options[key] for key in stored}
    )


class Source:
    """Records of a prepared source by split and position.

    Attributes:
        info: Description of the prepared source.
    """

    def __init__(self, directory: Path):
        """Opens a prepared directory.

        Raises:
            DataError: The files are damaged.
        """
        self.info = read_info(directory)
        try:
            damage = find_damage(directory, base.MAX_HASHED_BYTES)
        except OSError as error:
            raise DataError(f"{directory}: could not be read ({error}); try again") from error
        if damage is not None:
            raise DataError(f"{damage}; remove {directory} to have it prepared again")
        self._split = functools.cache(self._read_split)
        self._columns = functools.cache(self._read_columns)

    def split(self, name: str) -> Records:
        """Returns the records of `train`, `valid` or `test`, in the order they were written.

        Splits of less than 512 MiB are kept in memory.

        Raises:
            DataError: The split does not exist, is empty, or its files are damaged.
        """
        if not self.info.num_records.get(name):
            available = [split for split in SPLITS if self.info.num_records[split]]
            problem = "empty" if name in SPLITS else "unknown"
            raise DataError(
                f"{self.info.directory}: split {name!r} is {problem}, expected one of "
                f"{', '.join(available)}; choose one of these, or hold samples out in data.options"
            )
        return self._split(name)

    def ids(self, split: str) -> list[str]:
        """Returns the names of the records of a split, in order."""
        return list(self._columns(split)["id"])

    def groups(self, split: str) -> list[str]:
        """Returns the groups of the records of a split, in order."""
        return list(self._columns(split)["group"])

    def values(self, split: str) -> list[float | np.ndarray]:
        """Returns the numbers of the records of a split, in order; NaN if there are none."""
        return list(self._columns(split)["value"])

    def weights(self, split: str) -> np.ndarray:
        """Returns what each record of a split counts, in order; 1 without weights."""
        return np.asarray(self._columns(split)["weight"], np.float64)

    def targets(self, split: str, target: Target) -> np.ndarray:
        """Returns the targets `[n, ...]` of a split, in order."""
        column = np.asarray(self._columns(split)[target.field])
        return column.reshape(len(column), target.size) if target.size else column

    def _read_columns(self, name: str) -> dict[str, list]:
        # All at once, since a large split must be read from disk for any of them.
        keys = ["id", "group", "value", "label", *(["labels"] if self.info.label_names else [])]
        columns: dict[str, list] = {key: [] for key in (*keys, "weight")}
        for record in self.split(name):
            for key in keys:
                columns[key].append(record[key])
            columns["weight"].append(record.get("weight", 1.0))
        return columns

    def _read_split(self, name: str) -> Records:
        records = open_shards(self.info, name)
        if len(records) * self.info.record_bytes < MAX_CACHED_BYTES:
            return tuple(records)
        return records


def _builder(config: DataConfig) -> SourceBuilder:
    return builder_class(config.source)(config.options, config.data_dir)


def _find_prepared(root: Path, fingerprint: str) -> Path | None:
    """Finds the data of a fingerprint below a folder, whatever their source file was called."""
    directories = sorted(root.glob(f"*-{glob.escape(fingerprint[:12])}/*"))
    # Not those that are being written or removed, whose names are no versions.
    versions = [path for path in directories if path.name.replace(".", "").isdecimal()]
    return next(filter(_is_prepared, versions), None)


def _is_prepared(directory: Path) -> bool:
    # TFDS writes this file last, before it renames the temporary directory.
    return (directory / "dataset_info.json").is_file()


@contextlib.contextmanager
def _silence_tfds() -> Iterator[None]:
    """Suppresses TFDS messages about downloads that do not take place."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
