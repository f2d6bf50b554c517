"""Records of a source, and the description of a prepared source."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Num

SPLITS = ("train", "valid", "test")
# Largest vocabulary of a token modality, in which each id has an embedding.
MAX_TOKENS = 10_000_000

# More classes than this are not listed one by one.
_MAX_LISTED = 20


class Record(TypedDict):
    """One sample, padded to the full length of every modality.

    Attributes:
        inputs: `{m: [t, f]}` float32 features or `{m: [t]}` int32 ids; zero where masked.
        mask: `{m: [t]}` bool, true at real time steps.
        label: Class, from 0; 0 if the source has no classes.
        value: Numbers `[r]` to predict, or the number behind the class, such as a sentiment; NaN
            if unknown.
        labels: 1, 0, or NaN (unknown) for each label `[l]`; left out if the source has none.
        weight: What the sample counts; left out if all count alike.
        id: Name of the sample, unique in its source.
        group: Name of the recording that the sample was cut from; samples of a group are not
            independent.
    """

    inputs: dict[str, np.ndarray]
    mask: dict[str, np.ndarray]
    label: int
    value: float | np.ndarray
    id: str
    group: str
    labels: NotRequired[np.ndarray]
    weight: NotRequired[float]


# Sequence of `Record`, without the parameter: a runtime type check would read a random record.
Records = Sequence


class LazyRecords(Sequence):
    """Records that are made when they are accessed by position."""

    def __init__(self, size: int, make: Callable[[int], Record]):
        self._size, self._make = size, make

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices needed
        """Returns the record at `index`; negative positions count from the end."""
        position = index + self._size if index < 0 else index
        if not 0 <= position < self._size:
            raise IndexError(f"record {index} of {self._size}")
        return self._make(position)

    def __iter__(self) -> Iterator[Record]:
        return map(self._make, range(self._size))


def select(rows: Sequence[int] | np.ndarray, read: Callable[[int], Record]) -> LazyRecords:
    """Returns the records of some rows of a file, in this order, read by `read(row)`."""
    return LazyRecords(len(rows), lambda index: read(int(rows[index])))


def independent_record(
    name: str, label: int, inputs: dict[str, np.ndarray], mask: dict[str, np.ndarray]
) -> Record:
    """Returns a record that is a group of its own, and whose class stands for no number."""
    return Record(inputs=inputs, mask=mask, label=label, value=math.nan, id=name, group=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityInfo:
    """Layout of one modality.

    Attributes:
        name: Key in a record.
        length: Number of time steps `t` of a record, padding included.
        feature_dim: Number of features `f`; for tokens the vocabulary size (largest id + 1).
        kind: `feature` (float32 `[t, f]`) or `token` (int32 `[t]`).
        sampling_rate: Time steps per second, 1 if unknown.
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
        """Size of one record in memory in bytes, mask included."""
        return 4 * int(np.prod(self.shape)) + self.length


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalityStatistics:
    """Moments of one modality over the real time steps of the training split.

    Attributes:
        mean: Mean of each feature, `[f]`.
        std: Population standard deviation of each feature, `[f]`.
        rms: Root mean square over time steps and features.
        count: Number of real time steps.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rms: float
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataInfo:
    """Description of a prepared source, stored beside its records.

    Attributes:
        source: Name of the source.
        class_names: Names of the classes, by label; empty if there are none.
        modalities: Layouts of the modalities, in order.
        statistics: Statistics of each feature modality over the training split.
        repairs: Number of repairs made while reading, by description.
        num_records: Number of records of each split.
        class_counts: Number of records of each class, for each split.
        groups: Sorted groups of each split.
        split_units: Sorted units that splits were drawn from (subjects, groups), for each split.
        options: Options of the source.
        source_sha256: SHA-256 of the source file, empty if there is none.
        fingerprint: SHA-256 of name, version and options of the source and of `source_sha256`;
            equal fingerprints mean equal records.
        directory: Directory of the prepared files.
        class_values: Number that each class stands for; empty if there are none.
        label_names: Names of the labels, of which a sample has any number; empty if there are none.
        value_names: Names of the numbers of a sample; empty if there are none.
        has_weight: Whether samples have weights.
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
    label_names: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()
    has_weight: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The remarks, and a sentence for every split without samples of some class."""
        return self.remarks + tuple(
            text
            for split in SPLITS
            if self.num_records[split]
            for text in _missing_classes(split, self.class_names, self.class_counts[split])
        )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def record_bytes(self) -> int:
        """Size of one record in memory in bytes."""
        return sum(modality.num_bytes for modality in self.modalities)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists and numbers, without `directory`, since files may be moved."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "directory"}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], directory: str) -> "DataInfo":
        """Restores what `to_json` returned, for the files in `directory`."""
        tuples = {
            field: {key: tuple(value) for key, value in fields[field].items()}
            for field in ("class_counts", "groups", "split_units")
        }
        statistics = {
            name: ModalityStatistics(
                **{**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])}
            )
            for name, entry in fields["statistics"].items()
        }
        modalities = tuple(ModalityInfo(**entry) for entry in fields["modalities"])
        parsed = {
            "class_names": tuple(fields["class_names"]),
            "class_values": tuple(fields["class_values"]),
            "label_names": tuple(fields.get("label_names", ())),
            # Data prepared by earlier versions do not name the number behind a class.
            "value_names": tuple(
                fields.get("value_names", ["value"] * bool(fields["class_values"]))
            ),
            "remarks": tuple(fields.get("remarks", ())),
            "modalities": modalities,
            "statistics": statistics,
        }
        return cls(**{**fields, **tuples, **parsed}, directory=directory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """Content of a source before it is written; see `DataInfo` for the other fields.

    Attributes:
        splits: Records of each split; validation and test may be empty or missing.
        repairs: Repairs, or a function that returns them after all records have been written.
    """

    modalities: tuple[ModalityInfo, ...]
    class_names: tuple[str, ...]
    splits: dict[str, Records]
    class_values: tuple[float, ...] = ()
    label_names: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()
    has_weight: bool = False
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
    """Converts at least one record to the entries of an `.npz` file for `read_arrays`.

    Returns:
        `<m> [n, t, f]` (or `[n, t]`) and `mask/<m> [n, t]` for every modality, `label [n]`,
        `id [n]` and `group [n]`, and those of `labels`, `value` and `weight` that there are.
    """
    rows = list(records)
    arrays = {name: np.stack([row["inputs"][name] for row in rows]) for name in rows[0]["inputs"]}
    masks = {f"mask/{name}": np.stack([row["mask"][name] for row in rows]) for name in arrays}
    keys = [key for key in ("label", "id", "group", "labels", "weight") if key in rows[0]]
    columns = {key: np.asarray([row[key] for row in rows]) for key in keys}
    values = np.asarray([row["value"] for row in rows])
    return {**arrays, **masks, **columns, **({} if np.isnan(values).all() else {"value": values})}


def describe(info: DataInfo) -> str:
    """Describes a prepared source in a few lines."""
    lines = [f"source       {info.source}"]
    for m in info.modalities:
        unit = "features" if m.kind == "feature" else "ids"
        lines.append(f"modality     {m.name}: {m.length} steps, {m.feature_dim} {unit}")
    if info.class_values:
        lines.append(f"values       {', '.join(f'{value:g}' for value in info.class_values)}")
    for what, names in (("labels", info.label_names), ("numbers", info.value_names)):
        if names:
            shown = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
            lines.append(f"{what:<12} {shown}")
    if info.has_weight:
        lines.append("weights      samples count by the entry 'weight'")
    for split in SPLITS:
        balance = _balance(info.class_names, info.class_counts[split])
        records = f"{split:<12} {info.num_records[split]} records"
        lines.append(f"{records}: {balance}" if balance else records)
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
    if len(names) > _MAX_LISTED:
        return f"{len(names)} classes of {min(counts)} to {max(counts)} records"
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def _missing_classes(split: str, names: Sequence[str], counts: Sequence[int]) -> tuple[str, ...]:
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if not missing:
        return ()
    shown = ", ".join(missing[:_MAX_LISTED]) + (", ..." if len(missing) > _MAX_LISTED else "")
    effect = "cannot be learned" if split == "train" else "cannot be scored there"
    count = "1 class" if len(missing) == 1 else f"{len(missing)} classes"
    return (f"split {split} has no sample of {count} of {len(names)}, which {effect}: {shown}",)
