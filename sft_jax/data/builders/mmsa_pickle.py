"""CMU-MOSEI, CMU-MOSI and CH-SIMS as processed for MMSA."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int

from sft_jax.config.data import MmsaPickleOptions
from sft_jax.data.builders.split_pickles import (
    MODALITIES,
    SENTIMENT_NAMES,
    SENTIMENTS,
    SplitPickleBuilder,
    assemble,
    read_column,
    read_features,
    read_names,
    read_splits,
    scan_features,
    sentiment_classes,
)
from sft_jax.data.records import Contents
from sft_jax.data.sequence_table import SequenceTable
from sft_jax.files import Rows, layout_error

# Separates the video from the number of the clip in a sample's name.
_SEPARATOR = "$_$"
_LENGTHS = ("audio_lengths", "vision_lengths")
_DEFAULT_COLUMN = "regression_labels"
# Columns of each `options.target`, the first that a file has; and what its number is called.
_COLUMNS = {
    _DEFAULT_COLUMN: (_DEFAULT_COLUMN,),
    "T": (f"{_DEFAULT_COLUMN}_T",),
    "A": (f"{_DEFAULT_COLUMN}_A",),
    "V": (f"{_DEFAULT_COLUMN}_V",),
    "M": (f"{_DEFAULT_COLUMN}_M", _DEFAULT_COLUMN),
}
_VALUE_NAMES = {"T": "sentiment_text", "A": "sentiment_audio", "V": "sentiment_vision"}


class MmsaPickle(SplitPickleBuilder, skip_registration=True):
    """Sentiment from video: `unaligned_50.pkl` and others of the MMSA project.

    Sequences are padded. The file gives lengths of audio and vision, and the real steps of text by
    BERT's attention mask; where it does not, steps with a feature other than 0 are real.
    Sentiments in [-3, 3] are numbers and seven classes; on another scale, numbers alone.
    """

    VERSION = tfds.core.Version("1.2.0")
    options: MmsaPickleOptions
    file_name = "unaligned_50.pkl"

    def options_summary(self) -> str:
        """Returns the name of the file, and the target."""
        return f"{Path(self.options.path).stem}-{self.options.target}"

    def contents(self) -> Contents:
        """Reads all labels and scans all features once."""
        path, target = self.file(), self.options.target
        splits = read_splits(path, (*MODALITIES, "id"))
        column = _find_column(path, splits, target)
        missing = _missing_lengths(path, splits)
        features = read_features(path, splits)
        values = {
            split: _read_values(path, f"{split}/{column}", entries[column], features[split])
            for split, entries in splits.items()
        }
        other_scale = _describe_other_scale(column, values)
        tables = {}
        for split, entries in splits.items():
            value = values[split]
            label = np.zeros(len(value), np.int64)
            if not other_scale:
                label = sentiment_classes(path, f"{split}/{column}", value)
            tables[split] = _read_table(path, split, features[split], entries, label, value)
        return assemble(
            path,
            tables,
            class_names=() if other_scale else SENTIMENT_NAMES,
            class_values=() if other_scale else SENTIMENTS,
            value_names=(_VALUE_NAMES.get(target, "sentiment"),),
            remarks=tuple(filter(None, (_describe_missing(missing), other_scale))),
        )


def _find_column(path: Path, splits: Mapping[str, Mapping[str, Any]], target: str) -> str:
    """Returns the column of a target; raises `DataError` if a split lacks it."""
    names = _COLUMNS[target]
    column = next((name for name in names if name in splits["train"]), names[-1])
    for split, entries in splits.items():
        if column not in entries:
            found = f"{', '.join(map(str, entries))} without {column}"
            expected = f"{column}, for data.options.target={target!r}"
            there = [
                name for name, columns in _COLUMNS.items() if any(c in entries for c in columns)
            ]
            remedy = "check data.source, or get the file again (docs/data.md says where)"
            if there:
                remedy = f"set data.options.target to {' or '.join(map(repr, there))}"
            raise layout_error(path, split, found, expected, remedy)
    return column


def _missing_lengths(path: Path, splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns which of `_LENGTHS` no split has; raises `DataError` if only some splits have one."""
    missing = []
    for name in _LENGTHS:
        without = [split for split, entries in splits.items() if name not in entries]
        if len(without) == len(splits):
            missing.append(name)
        elif without:
            found = f"{', '.join(map(str, splits[without[0]]))} without {name}"
            expected = f"{name}, as in the other splits"
            remedy = "add it, or remove it from all splits, so that steps of zeros are padding"
            raise layout_error(path, without[0], found, expected, remedy)
    return missing


def _describe_missing(lengths: Sequence[str]) -> str:
    """Returns a remark on lengths that the file does not have, if any."""
    names = " and ".join(name.removesuffix("_lengths") for name in lengths)
    given = " or ".join(lengths)
    return given and f"no {given} in the file: steps of {names} are real if any feature is not 0"


def _read_values(
    path: Path, key: str, value: Any, inputs: Mapping[str, Rows]
) -> Float[np.ndarray, "n"]:
    """Reads the numbers of a split; raises `DataError` if one is not finite."""
    values = read_column(path, key, value, (len(inputs[MODALITIES[0]]),), "fiu").astype(np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"{values[row]} for sample {row} ({np.count_nonzero(wrong)} such samples)"
        raise layout_error(path, key, found, "finite sentiments", "remove these samples")
    return values


def _describe_other_scale(column: str, values: Mapping[str, Float[np.ndarray, "n"]]) -> str:
    """Returns a remark if sentiments are not on the scale from -3 to 3, else an empty text.

    That is if training has larger ones, or if no split has one beyond -1 and 1, as in CH-SIMS.
    """
    sizes = {split: np.abs(given).max(initial=0) for split, given in values.items()}
    if max(sizes.values()) > 1 and sizes["train"] <= SENTIMENTS[-1]:
        return ""
    everything = np.concatenate(list(values.values()))
    return (
        f"{column} are from {everything.min():g} to {everything.max():g}, not on the scale from "
        f"{SENTIMENTS[0]:g} to {SENTIMENTS[-1]:g}: there are no classes, only numbers for task "
        "'regression'"
    )


def _read_table(
    path: Path,
    split: str,
    inputs: dict[str, Rows],
    entries: dict[str, Any],
    label: Int[np.ndarray, "n"],
    value: Float[np.ndarray, "n"],
) -> SequenceTable:
    known = {
        name: _read_mask(path, split, name, values.shape[:2], entries)
        for name, values in inputs.items()
    }
    mask, repairs = scan_features(inputs, known)
    ids = [name[0] for name in read_names(path, f"{split}/id", entries["id"], len(value))]
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=label,
        value=value,
        id=ids,
        group=[name.split(_SEPARATOR)[0] for name in ids],
        repairs=repairs,
    )


def _read_mask(
    path: Path, split: str, name: str, shape: tuple[int, ...], entries: dict[str, Any]
) -> Bool[np.ndarray, "n t"] | None:
    """Returns the mask that the file gives for a modality, or None."""
    size, steps = shape
    if name != "text":
        if f"{name}_lengths" not in entries:
            return None
        key = f"{split}/{name}_lengths"
        length = read_column(path, key, entries[f"{name}_lengths"], (size,), "iu")
        wrong = (length < 0) | (length > steps)
        if wrong.any():
            row = int(np.argmax(wrong))
            found = f"{length[row]} for sample {row}"
            remedy = "correct the length, or pad the array to the longest sample"
            raise layout_error(path, key, found, f"0 to {steps}, the steps of {name}", remedy)
        return np.arange(steps) < length[:, None]
    if "text_bert" not in entries:
        return None
    key = f"{split}/text_bert"
    attended = read_column(path, key, entries["text_bert"], (size, 3, steps), "fiu")[:, 1]
    if not np.isin(attended, (0, 1)).all():
        expected = "0 or 1 in its second row, BERT's attention mask"
        remedy = "remove the entry, so that text is masked where it is 0"
        raise layout_error(path, key, "other numbers", expected, remedy)
    return attended == 1
