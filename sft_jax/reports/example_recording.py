"""One recording of a split with the tokens that the model kept, for a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sft_jax.config.modality import ModalitySpec
from sft_jax.runs.example_file import Example
from sft_jax.types import DataError


def token_spans(spec: ModalitySpec) -> Int[np.ndarray, "tokens 2"]:
    """First time step of every token, and one past its last."""
    length = spec.steps_per_token
    start = np.repeat(np.arange(spec.grid[0]) * length, math.prod(spec.grid[1:]))
    return np.stack([start, start + length], axis=1)


def recording(
    records: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, np.ndarray],
    specs: Sequence[ModalitySpec],
    *,
    rows: Sequence[int],
    sampling_rate: float,
    title: str,
) -> Example | None:
    """Joins records that follow each other in time.

    Args:
        records: Records of a split; see `data.records.Record`.
        predictions: Predictions of the same split, with `kept/<m>/indices`, and
            `kept/<m>/saliency` if the pool computes it.
        specs: Modalities of the run.
        rows: Positions of the records to join, in order of time.
        sampling_rate: Time steps a second.
        title: Title of the figure.

    Returns:
        The example, or None if no modality with a signal has a pool that selects tokens.
    """
    signals, kept, saliency, spans = {}, {}, {}, {}
    for spec in specs:
        name = spec.name
        if f"kept/{name}/indices" not in predictions or spec.tokenizer == "token":
            continue
        indices = predictions[f"kept/{name}/indices"][rows]  # [windows, k]
        windows = np.arange(len(rows))[:, None]
        signals[name] = np.concatenate([records[row]["inputs"][name] for row in rows])
        kept[name] = np.where(indices < 0, -1, indices + windows * spec.num_tokens).reshape(-1)
        if f"kept/{name}/saliency" in predictions:
            saliency[name] = predictions[f"kept/{name}/saliency"][rows].reshape(-1)
        offsets = windows[..., None] * spec.length
        spans[name] = (token_spans(spec)[None] + offsets).reshape(-1, 2)
    if not signals:
        return None
    return Example(signals, kept, saliency, spans, sampling_rate, title)


def recording_rows(
    groups: Sequence[str], options: Mapping[str, Any], group: str = "", most: int = 4
) -> list[int]:
    """Positions of the records that cover a group from its start, without overlap.

    Args:
        groups: Group of every record of a split, in order.
        options: Options of the source. If it has a `window` that is a multiple of `step`, every
            `window / step`-th record continues the one before; otherwise one record is taken.
        group: Name of the group; the first one by default.
        most: Maximum number of records.

    Raises:
        DataError: The split has no such group.
    """
    group = group or groups[0]
    rows = [row for row, name in enumerate(groups) if name == group]
    if not rows:
        raise DataError(
            f"group: given {group!r}, expected one of {', '.join(dict.fromkeys(groups))}"
        )
    window, step = options.get("window"), options.get("step")
    if not window or window % step:
        return rows[:1]
    return rows[:: window // step][:most]


def of_split(
    source: Any,
    split: str,
    predictions: Mapping[str, np.ndarray],
    specs: Sequence[ModalitySpec],
    group: str = "",
) -> Example | None:
    """A recording of an evaluated split; None if `recording` has nothing to draw.

    Args:
        source: Opened `data.sources.Source`.
        split: Evaluated split.
        predictions: Predictions of all its records; see `recording`.
        specs: Modalities of the run.
        group: Name of the recording; the first one by default.

    Raises:
        DataError: The split has no such group.
    """
    groups, info = source.groups(split), source.info
    rows = recording_rows(groups, info.options, group)
    return recording(
        source.split(split),
        predictions,
        specs,
        rows=rows,
        sampling_rate=info.modalities[0].sampling_rate,
        title=f"{groups[rows[0]]} ({split} split)",
    )
