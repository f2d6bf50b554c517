"""Folds of a study: their splits in memory, and conditions applied to them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sft_jax.config.run import Config
from sft_jax.config.study import Condition
from sft_jax.data.pipeline import collate
from sft_jax.data.sources import Source
from sft_jax.training.session import Session
from sft_jax.types import Batch, ConfigError

# Every device holds all folds in memory.
LARGEST_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Fold:
    """Data of a fold.

    Attributes:
        name: Name of the fold.
        splits: All records of `train`, `valid` and `test` as one batch each; no empty splits.
        group: Group of each test record.
        ids: Id of each test record.
        test_units: Units held out for testing, such as subjects.
        source_sha256: SHA-256 of the source file; empty if there is none.
    """

    name: str
    splits: dict[str, Batch]
    group: np.ndarray
    ids: np.ndarray
    test_units: tuple[str, ...]
    source_sha256: str

    @classmethod
    def of(cls, name: str, session: Session) -> "Fold":
        """Reads all records of a prepared source.

        Raises:
            ConfigError: The data are too large.
        """
        info = session.source.info
        size = sum(info.num_records.values()) * info.record_bytes
        if size > LARGEST_BYTES:
            raise ConfigError(
                f"{info.directory}: found {size >> 20} MiB, expected at most "
                f"{LARGEST_BYTES >> 20} MiB, since a sweep holds its data in memory; run "
                "`python -m sft_jax.train` for each setting instead"
            )
        specs, normalizer = session.config.modalities, session.normalizer
        target = session.task.target
        splits = {
            split: collate(
                session.source.split(split), range(count), specs, normalizer, count, target
            )
            for split, count in info.num_records.items()
            if count
        }
        return cls(
            name=name,
            splits=splits,
            group=np.asarray(session.source.groups("test")),
            ids=np.asarray(session.source.ids("test")),
            test_units=info.split_units.get("test", ()),
            source_sha256=info.source_sha256,
        )


class FoldReader:
    """Opens and reads each fold once for all settings."""

    def __init__(self):
        self._sources: dict[Any, Source] = {}
        self._folds: dict[Any, Fold] = {}

    def __call__(self, name: str, config: Config) -> tuple[Session, Fold]:
        """Returns the session of a configuration, and its data as fold `name`.

        Raises:
            ConfigError: The settings do not fit the data, or the data are too large.
            DataError: The data cannot be used.
        """
        session = Session.open(config, source=self._sources.get(config.data))
        self._sources[config.data] = session.source
        shapes = tuple((spec.name, spec.length) for spec in session.config.modalities)
        key = (name, config.data, shapes, session.task.target)
        if key not in self._folds:
            self._folds[key] = Fold.of(name, session)
        return session, self._folds[key]


def apply_condition(condition: Condition, batch: Batch, seed: int = 0) -> Batch:
    """Masks what a condition removes from a split; deterministic.

    Args:
        condition: Condition to apply.
        batch: Records of a split `[n, ...]`.
        seed: Seed for the positions of gaps.

    Raises:
        ConfigError: The batch lacks a modality of the condition.
    """
    unknown = set(condition.missing) - set(batch["mask"])
    if unknown:
        raise ConfigError(
            f"condition {condition.name!r}: given {', '.join(sorted(unknown))}, expected "
            f"modalities of the data, {', '.join(batch['mask'])}"
        )
    mask = {}
    for i, (name, real) in enumerate(sorted(batch["mask"].items())):
        if name in condition.missing:
            mask[name] = np.zeros_like(real)
        else:
            mask[name] = real & ~_gaps(real, condition.gap, np.random.default_rng([seed, i]))
    inputs = {
        name: np.where(mask[name].reshape(mask[name].shape + (1,) * (x.ndim - 2)), x, 0).astype(
            x.dtype
        )
        for name, x in batch["inputs"].items()
    }
    return {**batch, "inputs": inputs, "mask": mask}


def _gaps(real: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """An interval in each row that covers a share of its unmasked time steps."""
    lengths = real.sum(axis=1)
    sizes = np.round(share * lengths).astype(int)
    starts = np.floor(random.random(len(real)) * (lengths - sizes + 1)).astype(int)
    order = np.cumsum(real, axis=1) - 1  # position among the unmasked time steps
    return (order >= starts[:, None]) & (order < (starts + sizes)[:, None]) & real


def rows_of(batches: Sequence[Int[np.ndarray, " _"]], batch_size: int) -> np.ndarray:
    """Positions of the batches of several runs as `[r, b]`, filled up with -1."""
    rows = np.full((len(batches), batch_size), -1, np.int32)
    for row, positions in zip(rows, batches, strict=True):
        row[: len(positions)] = positions
    return rows
