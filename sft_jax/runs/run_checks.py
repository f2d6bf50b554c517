"""Whether the files of a run folder agree with each other, before anything is drawn of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.metrics.calibration import reliability
from sft_jax.config.modality import ModalitySpec
from sft_jax.types import DataError

_EVALUATE = "write it again with `python -m sft_jax.evaluate`"


def check_agreement(
    workdir: Path,
    data: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
):
    """Raises `DataError` unless numbers of classes agree and curves have all they are drawn of."""
    classes = len(data["class_names"])
    for split, counts in data["counts"].items():
        if len(counts) != classes:
            raise DataError(
                f"{workdir / 'data.json'}: counts.{split}: found {len(counts)} classes, expected "
                f"{classes}, one a name in class_names; restore the file"
            )
    for evaluation in evaluations:
        confusion = evaluation["confusion"]
        if {len(row) for row in (confusion, *confusion)} != {classes}:
            raise DataError(
                f"{workdir}/evaluation_{evaluation['split']}.json: confusion: found rows of "
                f"{sorted({len(row) for row in confusion})} and {len(confusion)} of them, expected "
                f"{classes}, one a class of data.json; {_EVALUATE}"
            )
    for record in records:
        missing = [name for name in ("loss", "top1") if name not in record]
        if record["kind"] in ("train", "valid") and missing:
            raise DataError(
                f"{workdir / 'metrics.jsonl'}: step {record['step']}, {record['kind']}: found "
                f"{sorted(record)}, expected also {missing}; remove the line"
            )


def checked_predictions(
    path: Path,
    entries: Mapping[str, np.ndarray],
    specs: Sequence[ModalitySpec],
) -> dict[str, np.ndarray]:
    """`predictions_<split>.npz` of a run, its rows as many as its labels.

    Args:
        path: of the file.
        entries: what it holds.
        specs: modalities of the run.

    Raises:
        DataError: entries that are missing, of other shapes, or not of this run.
    """
    given = dict(entries)
    label = _entry(path, given, "label", 1, "iu")
    rows = {
        "probabilities": _entry(path, given, "probabilities", 2, "f"),
        "id": _entry(path, given, "id", 1, "iuU"),
        "group": _entry(path, given, "group", 1, "iuU"),
    }
    kept = {f"kept/{spec.name}/indices": spec.num_tokens for spec in specs}
    rows |= {name: _entry(path, given, name, 2, "iu") for name in kept if name in given}
    for name, array in rows.items():
        if len(array) != len(label) or not len(label):
            raise _misfit(path, name, f"{len(array)} rows for {len(label)} labels", "one a label")
    for name, tokens in kept.items():
        if name in rows and rows[name].size:
            low, high = rows[name].min(), rows[name].max()
            if low < -1 or high >= tokens:
                raise _misfit(path, name, f"tokens {low} to {high}", f"-1 to {tokens - 1}")
    try:
        reliability(rows["probabilities"], label)  # which checks rows and labels
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return given


def checked_example(path: Path, names: Sequence[str], entries: Mapping[str, np.ndarray]):
    """Raises `DataError` unless arrays of `example.npz` have the shapes that are drawn."""
    for name in names:
        _finite(path, f"signal/{name}", _entry(path, entries, f"signal/{name}", 2, "fiu"))
        _entry(path, entries, f"kept/{name}", 1, "iu")
        spans = _entry(path, entries, f"span/{name}", 2, "iu")
        if spans.shape[1] != 2:
            raise _misfit(path, f"span/{name}", f"shape {spans.shape}", "[tokens, 2]")
        if f"saliency/{name}" in entries:
            saliency = _entry(path, entries, f"saliency/{name}", 1, "fiu")
            _finite(path, f"saliency/{name}", saliency)
    rate = _entry(path, entries, "sampling_rate", 0, "fiu")
    if not 1e-9 <= rate <= 1e12:
        raise _misfit(path, "sampling_rate", rate, "time steps a second, above 0")
    _entry(path, entries, "title", 0, "U")


def _finite(path: Path, name: str, values: np.ndarray):
    if not values.size or not np.isfinite(values).all():
        raise _misfit(path, name, "none, or values that are not finite", "finite numbers")


def _entry(
    path: Path, entries: Mapping[str, np.ndarray], name: str, axes: int, kinds: str
) -> np.ndarray:
    if name not in entries:
        raise _misfit(path, name, f"{sorted(entries)}", "it beside them")
    array = entries[name]
    if array.ndim != axes or array.dtype.kind not in kinds:
        expected = f"{axes} axes of {_KINDS[kinds]}"
        raise _misfit(path, name, f"{array.dtype} of shape {array.shape}", expected)
    return array


_KINDS = {
    "iu": "whole numbers",
    "f": "fractions",
    "fiu": "numbers",
    "U": "text",
    "iuU": "text or whole numbers",
}


def _misfit(path: Path, name: str, found: Any, expected: str) -> DataError:
    return DataError(f"{path}: {name}: found {found}, expected {expected}; {_EVALUATE}")
