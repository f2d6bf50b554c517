"""CMU-MOSEI and CMU-MOSI as processed for MMSA."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sft_jax.config.data import MmsaPickleOptions
from sft_jax.data.builders.split_pickles import (
    SENTIMENTS,
    PickleBuilder,
    assemble,
    column,
    features,
    names,
    read_splits,
    sentiments,
)
from sft_jax.data.records import Contents
from sft_jax.data.sequence_table import SequenceTable, inspect
from sft_jax.files.errors import layout_error
from sft_jax.files.rows import Rows

MODALITIES = ("vision", "audio", "text")
# Between the video and the number of the clip in a sample's name.
_SEPARATOR = "$_$"
_LENGTHS = ("audio_lengths", "vision_lengths")


class MmsaPickle(PickleBuilder, skip_registration=True):
    """Sentiment from video: `unaligned_50.pkl` of the MMSA project.

    Sequences are padded at their end. The file gives lengths of audio and vision; the real steps of
    text are those of BERT's attention mask, or where there is none those with a feature other than
    0. Sentiments in [-3, 3] become seven classes.
    """

    options: MmsaPickleOptions
    file_name = "unaligned_50.pkl"

    def readable(self) -> str:
        """Name of the file."""
        return Path(self.options.path).stem

    def contents(self) -> Contents:
        """Reads all labels and looks at all features once."""
        path = self.file()
        splits = read_splits(path, (*MODALITIES, *_LENGTHS, "id", "regression_labels"))
        arrays = {name: features(path, splits, name) for name in MODALITIES}
        tables = {
            split: _table(path, split, {name: arrays[name][split] for name in MODALITIES}, entries)
            for split, entries in splits.items()
        }
        return assemble(path, tables, [f"{value:g}" for value in SENTIMENTS], SENTIMENTS)


def _table(
    path: Path, split: str, inputs: dict[str, Rows], entries: dict[str, Any]
) -> SequenceTable:
    key = f"{split}/regression_labels"
    size = len(inputs[MODALITIES[0]])
    value = column(path, key, entries["regression_labels"], (size,), "fiu").astype(np.float64)
    mask: dict[str, np.ndarray] = {}
    repairs: dict[str, int] = {}
    for name, values in inputs.items():
        known = _known_mask(path, split, name, values, size, entries)
        mask[name], counts = inspect(values, known)
        repairs |= {f"{name}: {kind} set to 0": count for kind, count in counts.items()}
    ids = [entry[0] for entry in names(path, f"{split}/id", entries["id"], size)]
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=sentiments(path, key, value),
        value=value,
        id=ids,
        group=[name.split(_SEPARATOR)[0] for name in ids],
        repairs=repairs,
    )


def _known_mask(
    path: Path, split: str, name: str, values: Rows, size: int, entries: dict[str, Any]
) -> Bool[np.ndarray, "n t"] | None:
    """What the file says of real steps, None if it says nothing."""
    steps = values.shape[1]
    if len(values) != size:
        wanted = f"{size}, as {split}/{MODALITIES[0]} has"
        remedy = "all modalities of a split have one first axis; get the file again"
        raise layout_error(path, f"{split}/{name}", f"{len(values)} samples", wanted, remedy)
    if name != "text":
        key = f"{split}/{name}_lengths"
        length = column(path, key, entries[f"{name}_lengths"], (size,), "iu")
        wrong = (length < 0) | (length > steps)
        if wrong.any():
            row = int(np.argmax(wrong))
            what = f"{length[row]} for sample {row}"
            remedy = "correct the length, or pad the array to the longest sample"
            raise layout_error(path, key, what, f"0 to {steps}, the steps of {name}", remedy)
        return np.arange(steps) < length[:, None]
    if "text_bert" not in entries:
        return None
    key = f"{split}/text_bert"
    attended = column(path, key, entries["text_bert"], (size, 3, steps), "fiu")[:, 1]
    if not np.isin(attended, (0, 1)).all():
        wanted = "0 or 1 in its second row, BERT's attention mask"
        remedy = "remove the entry, so that text is masked where it is 0"
        raise layout_error(path, key, "other numbers", wanted, remedy)
    return attended == 1
