"""CMU-MOSEI, CMU-MOSI and IEMOCAP as processed for MulT."""

from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.data import MultPickleOptions
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
from sft_jax.files.rows import as_rows, describe

MODALITIES = ("vision", "audio", "text")
EMOTIONS = ("neutral", "happy", "sad", "angry")
# Features of vision, audio and text.
_WIDTHS = {"mosei": (35, 74, 300), "mosi": (20, 5, 300)}


class MultPickle(PickleBuilder, skip_registration=True):
    """Sentiment or emotion from video, in the pickles of MulT.

    "Multimodal Transformer for Unaligned Multimodal Language Sequences" (arXiv 1906.00295).
    A time step is real where any of its features is not 0, after values that are not finite became
    0. Sentiments in [-3, 3] become seven classes; of IEMOCAP's emotions, one is told from the rest.
    """

    options: MultPickleOptions
    file_name = "mosei_senti_data_noalign.pkl"

    def readable(self) -> str:
        """What the file is said to hold, and the emotion."""
        o = self.options
        return f"{Path(o.path).stem}-{o.dataset}-{o.emotion}"

    def contents(self) -> Contents:
        """Reads all labels and looks at all features once."""
        path = self.file()
        splits = read_splits(path, (*MODALITIES, "labels"))
        arrays = {name: features(path, splits, name) for name in MODALITIES}
        widths = tuple(arrays[name]["train"].shape[2] for name in MODALITIES)
        dataset = detect(path, splits["train"]["labels"], widths, self.options)
        tables = {
            split: _table(
                path,
                split,
                {name: arrays[name][split] for name in MODALITIES},
                entries,
                self.options.emotion if dataset == "iemocap" else None,
            )
            for split, entries in splits.items()
        }
        if dataset == "iemocap":
            return assemble(path, tables, (f"not {self.options.emotion}", self.options.emotion), ())
        return assemble(path, tables, [f"{value:g}" for value in SENTIMENTS], SENTIMENTS)


def detect(path: Path, labels: Any, widths: tuple[int, ...], options: MultPickleOptions) -> str:
    """Which set this is, by the shape of its labels and the widths of its features.

    Returns:
        `iemocap`, `mosei`, `mosi`, or `sentiment` where widths are of neither.

    Raises:
        DataError: labels are of no known shape, or `options.dataset` says otherwise.
    """
    rows = as_rows(labels)
    shape = rows.shape[1:] if rows is not None else None
    if shape not in ((1, 1), (len(EMOTIONS), 2)):
        wanted = "sentiments of shape [n, 1, 1] or emotions of shape [n, 4, 2]"
        remedy = "give a pickle made for MulT; docs/data.md says where it comes from"
        what = describe(labels if rows is None else rows)
        raise layout_error(path, "train/labels", what, wanted, remedy)
    if shape == (len(EMOTIONS), 2):
        found = "iemocap"
    else:
        known = [name for name in _WIDTHS if _WIDTHS[name] == widths]
        found = known[0] if known else "sentiment"
    given = options.dataset
    if given not in ("auto", found) and (found != "sentiment" or given == "iemocap"):
        what = f"{found} (labels [n, {shape[0]}, {shape[1]}], widths {widths})"
        remedy = "set data.options.dataset to 'auto', or data.options.path to another file"
        raise layout_error(path, "data.options.dataset", what, given, remedy)
    return found


def _table(
    path: Path, split: str, inputs: dict[str, Any], entries: dict[str, Any], emotion: str | None
) -> SequenceTable:
    size = len(inputs[MODALITIES[0]])
    for name, values in inputs.items():
        if len(values) != size:
            wanted = f"{size}, as {split}/{MODALITIES[0]} has"
            remedy = "all modalities of a split have one first axis; get the file again"
            raise layout_error(path, f"{split}/{name}", f"{len(values)} samples", wanted, remedy)
    key = f"{split}/labels"
    if emotion is None:
        value = column(path, key, entries["labels"], (size, 1, 1), "fiu").reshape(size)
        value = value.astype(np.float64)
        label = sentiments(path, key, value)
    else:
        given = column(path, key, entries["labels"], (size, len(EMOTIONS), 2), "fiu")
        label = _one_of_two(path, key, given, EMOTIONS.index(emotion))
        value = np.full(size, np.nan)
    mask: dict[str, np.ndarray] = {}
    repairs: dict[str, int] = {}
    for name, values in inputs.items():
        mask[name], counts = inspect(values)
        repairs |= {f"{name}: {kind} set to 0": count for kind, count in counts.items()}
    parts: list[tuple[str, ...]] = [(f"{split}{row:06d}",) for row in range(size)]
    if "id" in entries:
        parts = names(path, f"{split}/id", entries["id"], size)
    return SequenceTable(
        inputs=inputs,
        mask=mask,
        label=label,
        value=value,
        id=["_".join(entry) for entry in parts],
        group=[entry[0] for entry in parts],
        repairs=repairs,
    )


def _one_of_two(path: Path, key: str, given: np.ndarray, emotion: int) -> np.ndarray:
    wrong = ~(np.isin(given, (0, 1)).all(2) & (given.sum(2) == 1)).all(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"{given[row].tolist()} for sample {row}"
        wanted = "a single 1 in each pair (no, yes) of neutral, happy, sad, angry"
        raise layout_error(path, key, what, wanted, "remove these samples, or correct them")
    return given[:, emotion].argmax(1)
