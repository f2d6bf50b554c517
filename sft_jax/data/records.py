"""What a source holds: its records, and everything known about them as a whole."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Num

SPLITS = ("train", "valid", "test")
# Ids that a modality of tokens may have, each with an embedding of its own.
MOST_TOKENS = 10_000_000

# More than these are not told one by one.
_MOST_CLASSES = 20


class Record(TypedDict):
    """One sample, padded to the full length of every modality.

    Attributes:
        inputs: `{m: [t, f]}` float32 features or `{m: [t]}` int32 ids; zero where masked.
        mask: `{m: [t]}` bool, true where a real time step is.
        label: class, from 0.
        value: number behind the label (a sentiment, say), NaN where classes have none.
        id: name of the sample, unique in its source.
        group: what the sample was cut from; samples of a group are not independent.
    """

    inputs: dict[str, np.ndarray]
    mask: dict[str, np.ndarray]
    label: int
    value: float
    id: str
    group: str


# `Record`s by position. Not `Sequence[Record]`: a check of the type would read one, at random,
# which takes time and may be damaged.
Records = Sequence


class LazyRecords(Sequence):
    """`size` records, each made when it is asked for, by position."""

    def __init__(self, size: int, make: Callable[[int], Record]):
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """The record at `index`; negative positions count from the end."""
        position = index + self._size if index < 0 else index
        if not 0 <= position < self._size:
            raise IndexError(f"record {index} of {self._size}")
        return self._make(position)

    def __iter__(self) -> Iterator[Record]:
        return map(self._make, range(self._size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityInfo:
    """What the data holds of one modality.

    Attributes:
        name: its key in a record.
        length: time steps `t` of a record, padding included.
        feature_dim: features `f`; for tokens the vocabulary size (largest id + 1).
        kind: `feature` (float32 `[t, f]`) or `token` (int32 `[t]`).
        sampling_rate: time steps a second, 1 where it is not known.
    """

    name: str
    length: int
    feature_dim: int
    kind: str
    sampling_rate: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record's array."""
        return (self.length, self.feature_dim) if self.kind == "feature" else (self.length,)

    @property
    def num_bytes(self) -> int:
        """Bytes of one record in memory, mask included."""
        return 4 * int(np.prod(self.shape)) + self.length


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityStatistics:
    """Moments of one modality over the real time steps of the training split.

    Attributes:
        mean, std: of each feature `[f]` (population standard deviation).
        rms: root of the mean square over time steps and features together.
        count: real time steps seen.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rms: float
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """A prepared source, as stored beside its records.

    Attributes:
        source: name of the source.
        class_names: names of the classes, by label.
        modalities: what records hold, in order.
        statistics: of each feature modality, over the training split.
        repairs: what was mended while reading, and how often.
        num_records: records of each split.
        class_counts: records of each class, of each split.
        groups: groups of each split, sorted.
        split_units: what the splits were drawn over (subjects, groups), of each split, sorted.
        options: the source's options.
        source_sha256: SHA-256 of the source file, empty where there is none.
        fingerprint: SHA-256 of the source's name, version and options and of `source_sha256`:
            equal fingerprints mean equal records.
        directory: where the prepared files lie.
        class_values: number that each class stands for, in order; empty where classes have none.
        remarks: Sentences on what was left out, assumed or looks wrong.
    """

    source: str
    class_names: tuple[str, ...]
    modalities: tuple[ModalityInfo, ...]
    statistics: dict[str, ModalityStatistics]
    repairs: dict[str, int]
    num_records: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    groups: dict[str, tuple[str, ...]]
    split_units: dict[str, tuple[str, ...]]
    options: dict[str, Any]
    source_sha256: str
    fingerprint: str
    directory: str
    class_values: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The remarks, and the classes that a split has no sample of."""
        return self.remarks + tuple(
            text
            for split in SPLITS
            if self.num_records[split]
            for text in _missing_classes(split, self.class_names, self.class_counts[split])
        )

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record in memory."""
        return sum(modality.num_bytes for modality in self.modalities)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; `directory` is left out, since files may be moved."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "directory"}

    @classmethod
    def from_json(cls, given: Mapping[str, Any], directory: str) -> "DataInfo":
        """The inverse of `to_json`, for the files in `directory`."""
        tuples = {
            field: {key: tuple(value) for key, value in given[field].items()}
            for field in ("class_counts", "groups", "split_units")
        }
        statistics = {
            name: ModalityStatistics(
                **{**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])}
            )
            for name, entry in given["statistics"].items()
        }
        modalities = tuple(ModalityInfo(**entry) for entry in given["modalities"])
        parsed = {
            "class_names": tuple(given["class_names"]),
            "class_values": tuple(given["class_values"]),
            "remarks": tuple(given.get("remarks", ())),
            "modalities": modalities,
            "statistics": statistics,
        }
        return cls(**{**given, **tuples, **parsed}, directory=directory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """All of a source before it is written; see `DataInfo` for what the fields mean.

    Attributes:
        splits: records of each split that is not empty.
        repairs: what was mended, or a function that is asked once all records have been written.
    """

    modalities: tuple[ModalityInfo, ...]
    class_names: tuple[str, ...]
    splits: dict[str, Records]
    class_values: tuple[float, ...] = ()
    repairs: dict[str, int] | Callable[[], dict[str, int]] = dataclasses.field(default_factory=dict)
    split_units: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def fixed_length(
    steps: Num[np.ndarray, "s *f"], mask: Bool[np.ndarray, "s"], length: int
) -> tuple[Num[np.ndarray, "t *f"], Bool[np.ndarray, "t"]]:
    """Pads values and their mask at the end, up to `length` steps.

    Values are zero wherever the mask is false.
    """
    values = np.zeros((length, *steps.shape[1:]), steps.dtype)
    real = np.zeros(length, bool)
    values[: len(steps)][mask] = steps[mask]
    real[: len(mask)] = mask
    return values, real


def to_arrays(records: Records) -> dict[str, np.ndarray]:
    """Records as the entries of an `.npz` file, as `data.arrays.read_arrays` takes them.

    Args:
        records: `n` of them, at least one.

    Returns:
        `<m> [n, t, f]` (or `[n, t]`) and `mask/<m> [n, t]` for every modality, `label`, `id` and
        `group`, each `[n]`.
    """
    rows = list(records)
    arrays = {name: np.stack([row["inputs"][name] for row in rows]) for name in rows[0]["inputs"]}
    masks = {f"mask/{name}": np.stack([row["mask"][name] for row in rows]) for name in arrays}
    columns = {key: np.asarray([row[key] for row in rows]) for key in ("label", "id", "group")}
    return {**arrays, **masks, **columns}


def describe(info: DataInfo) -> str:
    """What was found, split by split, in a few lines."""
    lines = [f"source       {info.source}"]
    for m in info.modalities:
        unit = "features" if m.kind == "feature" else "ids"
        lines.append(f"modality     {m.name}: {m.length} steps, {m.feature_dim} {unit}")
    if info.class_values:
        lines.append(f"values       {', '.join(f'{value:g}' for value in info.class_values)}")
    for split in SPLITS:
        balance = _balance(info.class_names, info.class_counts[split])
        lines.append(f"{split:<12} {info.num_records[split]} records: {balance}")
        groups = f"             {len(info.groups[split])} groups"
        units = info.split_units.get(split, ())
        if units:
            shown = ", ".join(units[:10]) + (", ..." if len(units) > 10 else "")
            groups += f"; split over {len(units)}: {shown}"
        lines.append(groups)
    for what, count in info.repairs.items():
        lines.append(f"repaired     {what}: {count}")
    if not info.repairs:
        lines.append("repaired     nothing")
    lines += [f"warning      {text}" for text in info.warnings]
    lines.append(f"sha256       {info.source_sha256 or 'no source file'}")
    lines.append(f"fingerprint  {info.fingerprint}")
    lines.append(f"directory    {info.directory}")
    return "\n".join(lines)


def _balance(names: Sequence[str], counts: Sequence[int]) -> str:
    if len(names) > _MOST_CLASSES:
        return f"{len(names)} classes of {min(counts)} to {max(counts)} records"
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def _missing_classes(split: str, names: Sequence[str], counts: Sequence[int]) -> tuple[str, ...]:
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if not missing:
        return ()
    shown = ", ".join(missing[:_MOST_CLASSES]) + (", ..." if len(missing) > _MOST_CLASSES else "")
    effect = "cannot be learned" if split == "train" else "cannot be scored there"
    count = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
    return (f"split {split} has no sample of {count} of {len(names)}, which {effect}: {shown}",)
