"""CMU-MOSEI, CMU-MOSI and IEMOCAP as processed for MulT."""

from pathlib import Path
from typing import Any

import numpy as np

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

EMOTIONS = ("neutral", "happy", "sad", "angry")
# Number of features of each modality.
_WIDTHS = {"mosei": (35, 74, 300), "mosi": (20, 5, 300)}


class MultPickle(SplitPickleBuilder, skip_registration=True):
    """Sentiment or emotion from video, in the pickles of MulT.

    "Multimodal Transformer for Unaligned Multimodal Language Sequences" (arXiv 1906.00295).
    A time step is real if any of its features is not 0, after non-finite values were set to 0.
    Sentiments in [-3, 3] become seven classes; of IEMOCAP's emotions, one is told from the rest.
    """

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
        widths = tuple(values.shape[2] for values in features["train"].values())
        dataset = _detect_dataset(path, splits["train"]["labels"], widths, self.options)
        emotion = self.options.emotion if dataset == "iemocap" else None
        tables = {
            split: _read_table(path, split, features[split], entries, emotion)
            for split, entries in splits.items()
        }
        if emotion is not None:
            return assemble(path, tables, (f"not {emotion}", emotion), ())
        return assemble(path, tables, SENTIMENT_NAMES, SENTIMENTS)


def _detect_dataset(
    path: Path, labels: Any, widths: tuple[int, ...], options: MultPickleOptions
) -> str:
    """Identifies the data set by the shape of its labels and the widths of its features.

    Returns:
        `iemocap`, `mosei`, `mosi`, or `sentiment` if the widths are of neither.

    Raises:
        DataError: The labels have an unknown shape, or contradict `options.dataset`.
    """
    rows = as_rows(labels)
    shape = rows.shape[1:] if rows is not None else None
    if shape not in ((1, 1), (len(EMOTIONS), 2)):
        expected = "sentiments of shape [n, 1, 1] or emotions of shape [n, 4, 2]"
        remedy = "give a pickle made for MulT; docs/data.md says where it comes from"
        found = describe_value(labels if rows is None else rows)
        raise layout_error(path, "train/labels", found, expected, remedy)
    if shape == (len(EMOTIONS), 2):
        detected = "iemocap"
    else:
        matches = [name for name in _WIDTHS if _WIDTHS[name] == widths]
        detected = matches[0] if matches else "sentiment"
    expected = options.dataset
    if expected not in ("auto", detected) and (detected != "sentiment" or expected == "iemocap"):
        found = f"{detected} (labels [n, {shape[0]}, {shape[1]}], widths {widths})"
        remedy = "set data.options.dataset to 'auto', or data.options.path to another file"
        raise layout_error(path, "data.options.dataset", found, expected, remedy)
    return detected


def _read_table(
    path: Path, split: str, inputs: dict[str, Rows], entries: dict[str, Any], emotion: str | None
) -> SequenceTable:
    size = len(inputs[MODALITIES[0]])
    key = f"{split}/labels"
    if emotion is None:
        value = read_column(path, key, entries["labels"], (size, 1, 1), "fiu").reshape(size)
        value = value.astype(np.float64)
        label = sentiment_classes(path, key, value)
    else:
        pairs = read_column(path, key, entries["labels"], (size, len(EMOTIONS), 2), "fiu")
        label = _emotion_classes(path, key, pairs, EMOTIONS.index(emotion))
        value = np.full(size, np.nan)
    mask, repairs = scan_features(inputs, {})
    names: list[tuple[str, ...]] = [(f"{split}{row:06d}",) for row in range(size)]
    if "id" in entries:
        names = read_names(path, f"{split}/id", entries["id"], size)
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=label,
        value=value,
        id=["_".join(name) for name in names],
        group=[name[0] for name in names],
        repairs=repairs,
    )


def _emotion_classes(path: Path, key: str, pairs: np.ndarray, emotion: int) -> np.ndarray:
    wrong = ~(np.isin(pairs, (0, 1)).all(2) & (pairs.sum(2) == 1)).all(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        found = f"{pairs[row].tolist()} for sample {row}"
        expected = "a single 1 in each pair (no, yes) of neutral, happy, sad, angry"
        raise layout_error(path, key, found, expected, "remove these samples, or correct them")
    return pairs[:, emotion].argmax(1)
