"""Prepared sources: written once as ArrayRecord, then read at random."""

import contextlib
import functools
import io
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from sft_jax.config.data import DataConfig
from sft_jax.data.builders import BUILDERS, SourceBuilder, base
from sft_jax.data.prepared import Shards, read_info
from sft_jax.data.records import SPLITS, DataInfo, LazyRecords, Records
from sft_jax.files.checksums import find_damage
from sft_jax.types import DataError

# Decoding a record takes longer than a small model takes to train on it.
MEMORY_BYTES = 512 << 20


def prepare(config: DataConfig, *, force: bool = False) -> DataInfo:
    """Writes the source's records to `config.data_dir`, unless they are there already.

    Args:
        config: source, options and directory.
        force: write anew even if the records are there.

    Returns:
        What was prepared.

    Raises:
        DataError: the source cannot be used.
    """
    return _prepare(_builder(config), force)


def _prepare(builder: SourceBuilder, force: bool = False) -> DataInfo:
    if force and builder.directory.exists():
        # Renamed first: a removal that is interrupted must not leave half a directory to open.
        aside = builder.directory.with_name(f"removed.{uuid.uuid4().hex}")
        builder.directory.rename(aside)
        shutil.rmtree(aside)
    if not _is_prepared(builder.directory):
        try:
            with _quiet():
                builder.write()
        # RuntimeError is ArrayRecord's own, of a file that cannot be written.
        except (OSError, RuntimeError) as error:
            # Two processes may prepare at once; the directory of the first to finish is in the
            # way of the other's, and as good.
            if not _is_prepared(builder.directory):
                raise DataError(
                    f"{builder.directory}: could not be written ({error}); see that the disk has "
                    "room and may be written to, or choose another data.data_dir"
                ) from error
    return read_info(builder.directory)


def open_source(config: DataConfig) -> "Source":
    """The prepared source, which is prepared first if it is not there yet.

    Raises:
        DataError: the source cannot be used.
    """
    return Source(Path(prepare(config).directory))


def open_source_of_run(config: DataConfig, fingerprint: str) -> "Source":
    """As `open_source`, but with the records an earlier version of this package prepared for a run.

    A newer version may make other records of the same file and options; it may draw another split,
    say. Those of the run are used where they are still in `config.data_dir`.

    Args:
        config: Configuration of the run.
        fingerprint: Fingerprint of the data that the run was trained on.

    Raises:
        DataError: the source cannot be used.
    """
    builder = _builder(config)
    if builder.fingerprint != fingerprint:
        for found in sorted(builder.directory.parents[1].glob(f"*-{fingerprint[:12]}/*")):
            if _is_prepared(found) and _is_of_run(read_info(found), builder, fingerprint):
                return Source(found)
    return Source(Path(_prepare(builder).directory))


def _is_of_run(info: DataInfo, builder: SourceBuilder, fingerprint: str) -> bool:
    """Whether records have this fingerprint and come from the builder's file with its options."""
    options = json.loads(json.dumps(builder.identity()))
    stored = {key: value for key, value in info.options.items() if key in options}
    return (
        info.fingerprint == fingerprint
        and info.source_sha256 == builder.sha256
        and stored == {key: options[key] for key in stored}
    )


class Source:
    """Records of a prepared source by split and position."""

    def __init__(self, directory: Path):
        """Opens the files in `directory`.

        Raises:
            DataError: they are not what was prepared.
        """
        self.info = read_info(directory)
        try:
            damage = find_damage(directory, base.SUMMED_BYTES)
        except OSError as error:
            raise DataError(f"{directory}: could not be read ({error}); try again") from error
        if damage is not None:
            raise DataError(f"{damage}; remove {directory} to have it prepared again")
        self._split = functools.cache(self._read_split)
        self._columns = functools.cache(self._read_columns)

    def split(self, name: str) -> Records:
        """Records of `train`, `valid` or `test`, in the order they were written.

        They are kept decoded in memory when the split takes less than 512 MiB.

        Raises:
            DataError: there is no such split, it is empty, or its files are damaged.
        """
        if not self.info.num_records.get(name):
            filled = [split for split in SPLITS if self.info.num_records[split]]
            found = "empty" if name in SPLITS else "unknown"
            raise DataError(
                f"{self.info.directory}: split {name!r} is {found}, expected one of "
                f"{', '.join(filled)}; choose one of these, or hold samples out in data.options"
            )
        return self._split(name)

    def ids(self, split: str) -> list[str]:
        """Names of the records of a split, in order."""
        return list(self._columns(split)["id"])

    def groups(self, split: str) -> list[str]:
        """Groups of the records of a split, in order."""
        return list(self._columns(split)["group"])

    def values(self, split: str) -> list[float]:
        """Numbers behind the labels of a split, in order; NaN where classes have none."""
        return list(self._columns(split)["value"])

    def _read_columns(self, name: str) -> dict[str, list]:
        # Together, since a large split is read from disk to get at any of them.
        columns: dict[str, list] = {"id": [], "group": [], "value": []}
        for record in self.split(name):
            for key, values in columns.items():
                values.append(record[key])
        return columns

    def _read_split(self, name: str) -> Records:
        shards = Shards(self.info, name)
        records = LazyRecords(len(shards), shards.__getitem__)
        if len(shards) * self.info.record_bytes < MEMORY_BYTES:
            return tuple(records)
        return records


def _builder(config: DataConfig) -> SourceBuilder:
    return BUILDERS[config.source](config.options, config.data_dir)


def _is_prepared(directory: Path) -> bool:
    # Written last by TFDS, into a directory that only then gets its name.
    return (directory / "dataset_info.json").is_file()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from announcing downloads that do not take place."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
