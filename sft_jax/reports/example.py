"""One recording of a split, with what the model kept of it, for a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from sft_jax.config.modality import ModalitySpec
from sft_jax.reports.figures import plots
from sft_jax.runs.run_folder import Example
from sft_jax.types import DataError


def token_spans(spec: ModalitySpec) -> Int[np.ndarray, "tokens 2"]:
    """First time step of every token, and the one past its last."""
    step = spec.steps_per_token
    start = np.repeat(np.arange(spec.grid[0]) * step, math.prod(spec.grid[1:]))
    return np.stack([start, start + step], axis=1)


def recording(
    records: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, np.ndarray],
    specs: Sequence[ModalitySpec],
    *,
    rows: Sequence[int],
    sampling_rate: float,
    title: str,
) -> Example | None:
    """Records that follow each other in time, joined.

    Args:
        records: of a split, by position; see `data.records.Record`.
        predictions: of the same split, with `kept/<m>/indices`, and `kept/<m>/saliency` where the
            pool looks at it.
        specs: modalities of the run.
        rows: positions of the records to join, in order of time.
        sampling_rate: time steps a second.
        title: heading of the figure.

    Returns:
        The example, or None when no modality with a signal to draw has a pool that selects.
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
    return Example(signals, kept, saliency or None, spans, sampling_rate, title)


def recording_rows(
    groups: Sequence[str], options: Mapping[str, Any], group: str = "", most: int = 4
) -> list[int]:
    """Positions of the records that cover a group from its start, without overlap.

    Args:
        groups: of every record of a split, in order.
        options: of the source; with a `window` that `step` divides, every `window / step`-th
            record follows on the one before it, else only one record is taken.
        group: which; the first where empty.
        most: records at most.

    Raises:
        DataError: the split has no such group.
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
    """A recording of an evaluated split; None where `recording` has nothing to draw.

    Args:
        source: opened, a `data.sources.Source`.
        split: which was evaluated.
        predictions: of all its records, see `recording`.
        specs: modalities of the run.
        group: which recording; the first where empty.

    Raises:
        DataError: the split has no such group.
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


def draw(example: Example) -> Figure:
    """Signals over time with what was kept of them (see `plots.kept_tokens`)."""
    return plots.kept_tokens(
        example.signals,
        example.kept,
        {name: spans.tolist() for name, spans in example.spans.items()},
        example.sampling_rate,
        example.title,
        example.saliency,
    )
