"""CMU-MOSEI and CMU-MOSI as processed for MMSA."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

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


class MmsaPickle(SplitPickleBuilder, skip_registration=True):
    """Sentiment from video: `unaligned_50.pkl` of the MMSA project.

    Sequences are padded at their end. The file gives lengths of audio and vision; the real steps of
    text are those of BERT's attention mask or, without one, those with a feature other than 0.
    Sentiments in [-3, 3] become seven classes.
    """

    options: MmsaPickleOptions
    file_name = "unaligned_50.pkl"

    def options_summary(self) -> str:
        """Returns the name of the file."""
        return Path(self.options.path).stem

    def contents(self) -> Contents:
        """Reads all labels and scans all features once."""
        path = self.file()
        splits = read_splits(path, (*MODALITIES, *_LENGTHS, "id", "regression_labels"))
        features = read_features(path, splits)
        tables = {
            split: _read_table(path, split, features[split], entries)
            for split, entries in splits.items()
        }
        return assemble(path, tables, SENTIMENT_NAMES, SENTIMENTS)


def _read_table(
    path: Path, split: str, inputs: dict[str, Rows], entries: dict[str, Any]
) -> SequenceTable:
    key = f"{split}/regression_labels"
    size = len(inputs[MODALITIES[0]])
    value = read_column(path, key, entries["regression_labels"], (size,), "fiu").astype(np.float64)
    known = {
        name: _read_mask(path, split, name, values.shape[:2], entries)
        for name, values in inputs.items()
    }
    mask, repairs = scan_features(inputs, known)
    ids = [name[0] for name in read_names(path, f"{split}/id", entries["id"], size)]
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=sentiment_classes(path, key, value),
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
