"""CMU-MOSEI, CMU-MOSI and IEMOCAP as processed for MulT."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Float32, Int

from sft_jax.config.data import MultPickleOptions
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
from sft_jax.files import Rows, as_rows, describe_value, layout_error

# Of IEMOCAP, and of CMU-MOSEI, in the order of the files.
EMOTIONS = ("neutral", "happy", "sad", "angry")
MOSEI_EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
# Number of features of each modality.
_WIDTHS = {"mosei": (35, 74, 300), "mosi": (20, 5, 300)}
# Shape of a sample's labels; 7 numbers are a sentiment and the intensities of `MOSEI_EMOTIONS`.
_SENTIMENT = (1, 1)
_PAIRS = (len(EMOTIONS), 2)
_INTENSITIES = ((1, 7), (7,), (1, 6), (6,))


class MultPickle(SplitPickleBuilder, skip_registration=True):
    """Sentiment or emotions from video, in the pickles of MulT.

    "Multimodal Transformer for Unaligned Multimodal Language Sequences" (arXiv 1906.00295).
    A time step is real if any of its features is not 0, after non-finite values were set to 0.
    Sentiments in [-3, 3] are numbers and seven classes. Emotions are labels; of IEMOCAP's, one is
    also the class of a sample.
    """

    VERSION = tfds.core.Version("1.2.0")
    options: MultPickleOptions
    file_name = "mosei_senti_data_noalign.pkl"

    def options_summary(self) -> str:
        """Returns file name, data set and emotion."""
        o = self.options
        return f"{Path(o.path).stem}-{o.dataset}-{o.emotion}"

    def contents(self) -> Contents:
        """Reads all labels and scans all features once."""
        path = self.file()
        splits = read_splits(path, (*MODALITIES, "labels"))
        features = read_features(path, splits)
        shape = _label_shape(path, splits["train"]["labels"])
        widths = tuple(values.shape[2] for values in features["train"].values())
        _check_dataset(path, shape, widths, self.options.dataset)
        emotion = EMOTIONS.index(self.options.emotion)
        tables = {
            split: _read_table(path, split, features[split], entries, shape, emotion)
            for split, entries in splits.items()
        }
        if shape == _PAIRS:
            names = (f"not {self.options.emotion}", self.options.emotion)
            return assemble(path, tables, class_names=names, label_names=EMOTIONS)
        labels = MOSEI_EMOTIONS if shape in _INTENSITIES else ()
        if not _has_sentiment(shape):
            return assemble(path, tables, label_names=labels)
        return assemble(
            path,
            tables,
            class_names=SENTIMENT_NAMES,
            class_values=SENTIMENTS,
            label_names=labels,
            value_names=("sentiment",),
        )


def _has_sentiment(shape: tuple[int, ...]) -> bool:
    """Whether labels of this shape begin with a sentiment."""
    return shape != _PAIRS and math.prod(shape) != len(MOSEI_EMOTIONS)


def _label_shape(path: Path, labels: Any) -> tuple[int, ...]:
    """Returns the shape of a sample's labels; raises `DataError` if it is unknown."""
    rows = as_rows(labels)
    shape = tuple(rows.shape[1:]) if rows is not None else ()
    if shape not in (_SENTIMENT, _PAIRS, *_INTENSITIES):
        expected = (
            "sentiments of shape [n, 1, 1], emotions in pairs [n, 4, 2], intensities of six "
            "emotions [n, 6], or these after a sentiment [n, 1, 7]"
        )
        remedy = "give a pickle made for MulT; docs/data.md says where it comes from"
        found = describe_value(labels if rows is None else rows)
        raise layout_error(path, "train/labels", found, expected, remedy)
    return shape


def _check_dataset(
    path: Path, shape: tuple[int, ...], widths: tuple[int, ...], expected: str
) -> None:
    """Raises `DataError` if labels, or widths of features, are not those of `options.dataset`."""
    if shape == _SENTIMENT:
        # Widths of neither set may belong to both.
        detected = next((name for name in _WIDTHS if _WIDTHS[name] == widths), "sentiment")
        allowed = tuple(_WIDTHS) if detected == "sentiment" else (detected,)
    else:
        detected = "iemocap" if shape == _PAIRS else "mosei_emotions"
        allowed = (detected,)
    if expected not in ("auto", *allowed):
        found = f"{detected} (labels [n, {', '.join(map(str, shape))}], widths {widths})"
        remedy = "set data.options.dataset to 'auto', or data.options.path to another file"
        raise layout_error(path, "data.options.dataset", found, expected, remedy)


def _read_table(
    path: Path,
    split: str,
    inputs: dict[str, Rows],
    entries: dict[str, Any],
    shape: tuple[int, ...],
    emotion: int,
) -> SequenceTable:
    size = len(inputs[MODALITIES[0]])
    key = f"{split}/labels"
    targets = read_column(path, key, entries["labels"], (size, *shape), "fiu")
    label, value = np.zeros(size, np.int64), np.full(size, np.nan)
    labels = None
    if shape == _PAIRS:
        present = _read_pairs(path, key, targets)
        label, labels = present[:, emotion], present.astype(np.float32)
    columns = targets.reshape(size, math.prod(shape)).astype(np.float64)
    if _has_sentiment(shape):
        value = columns[:, 0]
        label = sentiment_classes(path, key, value)
    if shape in _INTENSITIES:
        labels = _present(path, key, columns[:, -len(MOSEI_EMOTIONS) :])
    mask, repairs = scan_features(inputs, {})
    names: list[tuple[str, ...]] = [(f"{split}{row:06d}",) for row in range(size)]
    if "id" in entries:
        names = read_names(path, f"{split}/id", entries["id"], size)
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=label,
        value=value,
        labels=labels,
        id=["_".join(name) for name in names],
        group=[name[0] for name in names],
        repairs=repairs,
    )


def _read_pairs(path: Path, key: str, pairs: np.ndarray) -> Int[np.ndarray, "n l"]:
    """Returns whether each emotion is present, from pairs (no, yes) `[n, l, 2]`."""
    wrong = ~(np.isin(pairs, (0, 1)).all(2) & (pairs.sum(2) == 1)).all(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"{pairs[row].tolist()} for sample {row}"
        expected = "a single 1 in each pair (no, yes) of neutral, happy, sad, angry"
        raise layout_error(path, key, found, expected, "remove these samples, or correct them")
    return pairs.argmax(2)


def _present(
    path: Path, key: str, intensities: Float[np.ndarray, "n l"]
) -> Float32[np.ndarray, "n l"]:
    """Returns 1 where an intensity is above 0, else 0; NaN stays NaN."""
    wrong = (intensities < 0) | np.isinf(intensities)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        samples = np.count_nonzero(wrong.any(1))
        name = MOSEI_EMOTIONS[column]
        found = f"{intensities[row, column]} of {name} for sample {row} ({samples} such samples)"
        expected = f"intensities from 0 of {', '.join(MOSEI_EMOTIONS)}, or NaN where unknown"
        remedy = "bring the columns to this order, or set unknown intensities to NaN"
        raise layout_error(path, key, found, expected, remedy)
    return np.where(np.isnan(intensities), np.nan, intensities > 0).astype(np.float32)
