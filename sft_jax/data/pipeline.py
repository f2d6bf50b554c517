"""Batches of records: normalised, padded, shuffled, and divided among processes."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, Num

from sft_jax.config.checks import check_choice
from sft_jax.config.data import NORMALIZATIONS
from sft_jax.config.modality import ModalitySpec
from sft_jax.data.records import DataInfo, ModalityInfo, ModalityStatistics, Record, Records
from sft_jax.types import A_CLASS, Batch, ConfigError, DataError, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Normalisation `(x - shift) / scale` of feature modalities, fitted to the training split.

    Attributes:
        kind: `channel` centres and scales every feature; `rms` divides a modality by one number,
            which keeps the directions of feature vectors; `none` leaves values unchanged.
        shift: `{m: (f numbers)}`.
        scale: `{m: (f numbers)}`; 1 for a constant feature.
    """

    kind: str
    shift: dict[str, tuple[float, ...]]
    scale: dict[str, tuple[float, ...]]

    @classmethod
    def from_statistics(
        cls, statistics: Mapping[str, ModalityStatistics], kind: str
    ) -> "Normalizer":
        """Returns the normalizer of a kind for `DataInfo.statistics`."""
        check_choice("data.normalization", kind, NORMALIZATIONS)
        shift, scale = {}, {}
        for name, entry in statistics.items():
            mean, std = np.asarray(entry.mean), np.asarray(entry.std)
            if kind == "channel":
                # A std below the float32 resolution of the mean is rounding of a constant.
                varies = std > 1e-6 * np.abs(mean)
                centre, width = mean, np.where(varies, std, 1.0)
            else:
                rms = entry.rms if kind == "rms" and entry.rms > 0 else 1.0
                centre, width = np.zeros_like(mean), np.full_like(mean, rms)
            shift[name], scale[name] = tuple(centre.tolist()), tuple(width.tolist())
        return cls(kind=kind, shift=shift, scale=scale)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Normalizer":
        """Restores what `to_json` returned.

        Raises:
            DataError: Shift and scale differ in modalities or features.
        """
        numbers = {
            field: {name: tuple(values) for name, values in fields[field].items()}
            for field in ("shift", "scale")
        }
        sizes = [
            {name: len(values) for name, values in entry.items()} for entry in numbers.values()
        ]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"normalizer: found shift of {sizes[0]} and scale of {sizes[1]} features, expected "
                "as many of each; restore data.json of the run"
            )
        return cls(kind=fields["kind"], **numbers)

    @functools.cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            name: (np.asarray(self.shift[name], np.float32), np.asarray(scale, np.float32))
            for name, scale in self.scale.items()
        }

    def __call__(
        self, name: str, x: Num[np.ndarray, "t *f"], mask: Bool[np.ndarray, "t"]
    ) -> Num[np.ndarray, "t *f"]:
        """Normalises one record's array of modality `name`; masked steps are exactly zero.

        Integer ids are returned unchanged.

        Raises:
            DataError: The modality is unknown, or has another number of features.
        """
        if x.dtype.kind in "iu":
            return x
        shift, scale = self._arrays.get(name, (None, None))
        if shift is None or shift.shape != x.shape[1:]:
            found = "a modality without statistics" if shift is None else f"{x.shape[1]} features"
            expected = f"one of {', '.join(self.scale)}" if shift is None else str(len(shift))
            raise DataError(
                f"modality {name!r}: found {found}, expected {expected}; give data of the shape "
                "that the normalizer was made from"
            )
        normal = (x.astype(np.float32) - shift) / scale
        return np.where(mask[:, None], normal, np.float32(0))


def collate(
    records: Records,
    indices: Sequence[int],
    modalities: Sequence[ModalitySpec],
    normalizer: Normalizer,
    batch_size: int,
    target: Target = A_CLASS,
) -> Batch:
    """Stacks records into a batch of `batch_size` rows, padding time steps and rows.

    Args:
        records: At most `batch_size` records, possibly none.
        indices: Position of each record in its split, the `id` of the batch.
        modalities: Modalities of the batch, with the lengths to pad to.
        normalizer: Normalizer applied to every record.
        target: Entry of the records that is the target.
        batch_size: Number of rows; those without a record have weight 0, target 0, id -1, and no
            real step.

    Raises:
        DataError: A record lacks a modality, is longer than its spec, differs in features, or has
            no real step in any of `modalities`.
    """
    batch = empty_batch(modalities, batch_size, target)
    for row, (record, index) in enumerate(zip(records, indices, strict=True)):
        for spec in modalities:
            x, mask = _checked(record, spec)
            batch["inputs"][spec.name][row, : len(x)] = normalizer(spec.name, x, mask)
            batch["mask"][spec.name][row, : len(x)] = mask
        if not any(batch["mask"][spec.name][row].any() for spec in modalities):
            raise DataError(
                f"record {record['id']!r}: found no real step in any of "
                f"{', '.join(spec.name for spec in modalities)}, expected at least one, since "
                "there is nothing to classify; leave the record out, or add a modality it has"
            )
        # Samples to predict have no target.
        batch["target"][row] = record.get(target.field, np.nan)
        batch["weight"][row] = record.get("weight", 1.0)
        batch["id"][row] = index
    return batch


def empty_batch(
    modalities: Sequence[ModalitySpec], batch_size: int, target: Target = A_CLASS
) -> Batch:
    """Returns a batch of padding rows only."""
    inputs, mask = {}, {}
    for spec in modalities:
        token = spec.tokenizer == "token"
        shape = (batch_size, spec.length) + (() if token else (spec.feature_dim,))
        inputs[spec.name] = np.zeros(shape, np.int32 if token else np.float32)
        mask[spec.name] = np.zeros((batch_size, spec.length), bool)
    return Batch(
        inputs=inputs,
        mask=mask,
        target=np.zeros((batch_size, target.size), np.float32)
        if target.size
        else np.zeros(batch_size, np.int32),
        weight=np.zeros(batch_size, np.float32),
        id=np.full(batch_size, -1, np.int32),
    )


def _checked(record: Record, spec: ModalitySpec) -> tuple[np.ndarray, np.ndarray]:
    where = f"record {record['id']!r}: modality {spec.name!r}"
    if spec.name not in record["inputs"]:
        raise DataError(
            f"{where}: found only {', '.join(record['inputs'])}, expected it too; add it to the "
            "data, all masked where it is missing"
        )
    x, mask = record["inputs"][spec.name], record["mask"][spec.name]
    token = spec.tokenizer == "token"
    if token != (x.ndim == 1):
        raise DataError(
            f"{where}: found an array of shape {x.shape}, expected "
            f"{'ids [t]' if token else 'features [t, f]'} for tokenizer {spec.tokenizer!r}; change "
            "the tokenizer or the data"
        )
    if len(x) > spec.length:
        raise DataError(
            f"{where}: found {len(x)} time steps, expected at most {spec.length} (its length); cut "
            "the record or raise the length"
        )
    if not token and x.shape[1] != spec.feature_dim:
        raise DataError(
            f"{where}: found {x.shape[1]} features, expected feature_dim {spec.feature_dim}; give "
            "the features that the modality was set up for"
        )
    if token and x.max(initial=0) >= spec.feature_dim:
        raise DataError(
            f"{where}: found id {x.max()}, expected ids below {spec.feature_dim} (its feature_dim, "
            "the vocabulary); number the tokens as in the training data"
        )
    return x, mask


def train_batches(
    source_split: Records,
    modalities: Sequence[ModalitySpec],
    normalizer: Normalizer,
    *,
    batch_size: int,
    seed: int,
    target: Target = A_CLASS,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    prefetch: int = 8,
) -> grain.DatasetIterator:
    """Yields shuffled batches without end; each process gets its rows of the same global batches.

    An epoch is a fresh shuffle of all records, cut into `ceil(n / batch_size)` global batches of
    which the last is padded (see `collate`); no batch crosses epochs. Process `p` of `P` yields
    rows `p * batch_size / P` up to `(p + 1) * batch_size / P`. The order depends only on `seed`,
    `batch_size` and the number of records. `get_state` returns JSON, and `set_state` resumes at the
    next batch, whatever `num_threads` and `prefetch`.

    Args:
        source_split: Records by position.
        modalities: Modalities of a batch, see `collate`.
        normalizer: Normalizer applied to every record.
        batch_size: Number of rows of a global batch.
        seed: Seed of the order.
        target: Entry of the records that is the target.
        process_index: Index of this process.
        process_count: Number of processes that share a global batch.
        num_threads: Number of threads that read records; 0 reads in the calling thread.
        prefetch: Number of batches read ahead.

    Raises:
        ConfigError: `process_count` does not divide `batch_size`.
    """
    rows = _rows(batch_size, process_count)

    def load(positions: Int[np.ndarray, "n"]) -> Batch:
        indices = positions[process_index * rows : (process_index + 1) * rows].tolist()
        records = [source_split[index] for index in indices]
        return collate(records, indices, modalities, normalizer, rows, target)

    batches = batch_order(len(source_split), batch_size, seed)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(batches.map(load).to_iter_dataset(options))


def batch_order(num_records: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Returns the positions of the records of every global training batch, without end.

    The last batch of an epoch is short if `batch_size` does not divide `num_records`.
    """
    # Grain shuffles epoch e of seed s like epoch e - 1 of seed s + 1; hashed seeds share no epoch.
    hashed_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(num_records).shuffle(seed=hashed_seed).batch(batch_size).repeat()


def _rows(batch_size: int, process_count: int) -> int:
    """Returns the number of rows of a global batch that one process holds."""
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size: given {batch_size} for {process_count} processes, expected a multiple "
            f"of {process_count}; change it or the number of processes"
        )
    return batch_size // process_count


def eval_batches(
    source_split: Records,
    modalities: Sequence[ModalitySpec],
    normalizer: Normalizer,
    *,
    batch_size: int,
    target: Target = A_CLASS,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every record once, in order; processes share batches as in training.

    The last batch is padded.

    Raises:
        ConfigError: `process_count` does not divide `batch_size`.
    """
    rows = _rows(batch_size, process_count)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(source_split), batch_size):
            first = start + process_index * rows
            indices = range(min(first, len(source_split)), min(first + rows, len(source_split)))
            records = [source_split[index] for index in indices]
            yield collate(records, indices, modalities, normalizer, rows, target)

    return batches()


def infer_modalities(info: DataInfo, specs: Sequence[ModalitySpec]) -> tuple[ModalitySpec, ...]:
    """Checks the modalities of a run against the data, or derives them from it.

    Without `specs`, every modality of the data is taken, with an attention pool that keeps an
    eighth of its tokens.

    Raises:
        ConfigError: A spec names an unknown modality, is too short, or has other features.
    """
    if not specs:
        return tuple(_default_spec(modality) for modality in info.modalities)
    known = {modality.name: modality for modality in info.modalities}
    for spec in specs:
        if spec.name not in known:
            reasons = [text for text in info.remarks if text.startswith(f"entry {spec.name} ")]
            raise ConfigError(
                f"modalities.{spec.name}: given, but the data has {', '.join(known)}; expected "
                f"these names; rename or remove it{''.join(f' ({text})' for text in reasons)}"
            )
        _check_spec(spec, known[spec.name])
    return tuple(specs)


def _default_spec(modality: ModalityInfo) -> ModalitySpec:
    return ModalitySpec(
        name=modality.name,
        length=modality.length,
        feature_dim=modality.feature_dim,
        tokenizer=modality.kind,
        pool="attn_topk",
        k=max(1, math.ceil(modality.length / 8)),
    )


def _check_spec(spec: ModalitySpec, modality: ModalityInfo) -> None:
    where = f"modalities.{spec.name}"
    if (spec.tokenizer == "token") != (modality.kind == "token"):
        raise ConfigError(
            f"{where}.tokenizer: given {spec.tokenizer!r} for {modality.kind} data, expected "
            f"{'token' if modality.kind == 'token' else 'feature, patch or tubelet'}; change it"
        )
    if spec.length < modality.length:
        raise ConfigError(
            f"{where}.length: given {spec.length}, expected at least the data's "
            f"{modality.length}; raise it, or cut the data"
        )
    if spec.feature_dim != modality.feature_dim:
        raise ConfigError(
            f"{where}.feature_dim: given {spec.feature_dim}, expected the data's "
            f"{modality.feature_dim}; set it so"
        )
