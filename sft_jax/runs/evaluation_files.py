"""Files of an evaluated split: scores, predictions, and scores without one modality.

- `evaluation_<split>.json`, what `Task.score` returned: `split`, `step`, `num_samples`; `metrics`,
  for each metric `{value, low, high}`; `resampled` ("sample" or "group"), the unit of the
  bootstrap; `group`, null or `{num_groups, <metric>: {value, low, high}}`; and entries of the
  task, such as `majority`, `per_class` and `confusion` `[c][c]` of a classifier. An undefined
  value is null, and so are the ends of an interval that does not exist.
- `predictions_<split>.npz`: `id`, `group` (text), `label`, `predicted` (integers) `[n]`,
  `probabilities` `[n, c]` float32, and for each modality `kept/<m>/indices` and
  `kept/<m>/saliency` `[n, k]`.
- `ablation_<split>.json`, what `metrics.ablation.ablation` returned.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.config.modality import ModalitySpec
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.json_files import (
    file_name,
    integer,
    list_of,
    map_of,
    nullable,
    number,
    record,
    text,
)
from sft_jax.files.npz import read_npz, write_npz
from sft_jax.runs.array_checks import check_distributions, checked_entry, misfit
from sft_jax.runs.schema import read_stored, write_stored
from sft_jax.types import CheckpointError

_SPLIT_ORDER = ("test", "valid", "train")
_REMEDY = "write it again with `python -m sft_jax.evaluate`"
_ABLATE = "write it again with `python -m sft_jax.evaluate --ablation`"
_ESTIMATE = {"value": nullable(number()), "low": nullable(number()), "high": nullable(number())}
_METRICS = map_of(record(_ESTIMATE))
_CLASS_SCORES = record(
    {
        "class": text(),
        "precision": number(),
        "recall": number(),
        "f1": number(),
        "support": integer(),
    }
)
_SENTIMENT = record(
    {
        **_ESTIMATE,
        "majority": nullable(number()),
        "num_samples": integer(),
        "left_out": integer(),
    }
)
_EVALUATION = record(
    {
        "split": file_name,
        "step": integer(),
        "num_samples": integer(least=1),
        "metrics": _METRICS,
        "resampled": text(),
    },
    {
        "group": nullable(record({"num_groups": integer()}, others=record(_ESTIMATE))),
        "majority": record({"class": text()}, others=nullable(number())),
        "per_class": list_of(_CLASS_SCORES),
        "confusion": list_of(list_of(integer(most=2**53)), least=1),
        "absent_classes": list_of(text()),
        "ranked_by": text(),
        "sentiment": nullable(map_of(_SENTIMENT)),
    },
)
_ABLATION = record(
    {
        "num_samples": integer(),
        "resampled": text(),
        "without": map_of(
            record(
                {
                    "num_samples": integer(),
                    "left_out": integer(),
                    "metrics": _METRICS,
                    "difference": _METRICS,
                }
            )
        ),
    }
)


def write_evaluation(
    workdir: Path,
    split: str,
    evaluation: dict[str, Any],
    predictions: Mapping[str, np.ndarray],
    ablation: dict[str, Any] | None = None,
):
    """Writes the files of an evaluated split, each one atomically.

    Args:
        workdir: Folder of the run.
        split: Split that was evaluated.
        evaluation: Content of `evaluation_<split>.json`.
        predictions: Entries of `predictions_<split>.npz`.
        ablation: Content of `ablation_<split>.json`; None writes no such file.

    Raises:
        CheckpointError: The disk is full or read-only.
    """
    with convert_disk_errors(workdir, outcome=""):
        write_stored(workdir / f"evaluation_{split}.json", evaluation)
        if ablation is not None:
            write_stored(workdir / f"ablation_{split}.json", ablation)
        write_npz(workdir / f"predictions_{split}.npz", predictions)


def read_evaluations(workdir: Path) -> list[dict[str, Any]]:
    """Reads the evaluations in a run folder, ordered test, valid, train, then by name.

    Raises:
        CheckpointError: There is none, or one is damaged.
    """
    evaluations = []
    for path in sorted(workdir.glob("evaluation_*.json")):
        evaluation = read_stored(path, _EVALUATION, _REMEDY)
        if path.stem != f"evaluation_{evaluation['split']}":
            raise CheckpointError(
                f"{path}: found split {evaluation['split']!r}, expected the one that the file is "
                f"named after; {_REMEDY}"
            )
        evaluations.append(evaluation)
    if not evaluations:
        raise CheckpointError(
            f"{workdir}: found no evaluation_<split>.json, expected at least one; make one with "
            f"`python -m sft_jax.evaluate --workdir={workdir} --split=test`"
        )
    order = {split: i for i, split in enumerate(_SPLIT_ORDER)}
    return sorted(evaluations, key=lambda e: (order.get(e["split"], len(order)), e["split"]))


def read_ablation(path: Path) -> dict[str, Any]:
    """Reads an `ablation_<split>.json`; raises `CheckpointError` if it is damaged."""
    return read_stored(path, _ABLATION, _ABLATE)


def read_predictions(
    path: Path, specs: Sequence[ModalitySpec], classes: bool = True
) -> dict[str, np.ndarray]:
    """Reads a `predictions_<split>.npz`.

    Args:
        path: Path of the file.
        specs: Modalities of the run.
        classes: Whether the run predicts classes, whose labels and probabilities are checked.

    Raises:
        DataError: Entries are missing, have other shapes, or do not belong to this run.
    """
    entries = read_npz(path, _REMEDY)
    entry = functools.partial(checked_entry, path, entries, remedy=_REMEDY)
    arrays = {"id": entry("id", 1, "iuU"), "group": entry("group", 1, "iuU")}
    if classes:
        arrays |= {
            "label": entry("label", 1, "iu"),
            "probabilities": entry("probabilities", 2, "f"),
        }
    size = len(arrays["label" if classes else "id"])
    num_tokens = {f"kept/{spec.name}/indices": spec.num_tokens for spec in specs}
    arrays |= {name: entry(name, 2, "iu") for name in num_tokens if name in entries}
    for name, array in arrays.items():
        if len(array) != size or not size:
            found = f"{len(array)} rows for {size} samples"
            raise misfit(path, name, found, "one row for each sample", _REMEDY)
    for name, count in num_tokens.items():
        if name in arrays and arrays[name].size:
            low, high = arrays[name].min(), arrays[name].max()
            if low < -1 or high >= count:
                expected = f"-1 to {count - 1}"
                raise misfit(path, name, f"tokens {low} to {high}", expected, _REMEDY)
    if classes:
        check_distributions(path, arrays["probabilities"], arrays["label"], _REMEDY)
    return entries
