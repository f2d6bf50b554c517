"""Exact evaluation: every record of a split once, outputs gathered in record order."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sft_jax.training.sharding import put_batch
from sft_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """Outputs of a model for the `n` real records of a split, in order of `id`.

    Attributes:
        id: `[n]` position of each record in its split.
        target: `[n, ...]` true targets.
        outputs: `[n, o]` outputs of the model's head.
        answers: What `Task.answer` returned, `{name: [n, ...]}`.
        sums: What `Task.sums` returned, `{name: (sum [n], count [n])}`.
        kept: `{m: {indices: [n, k]}}` of pools that select, with `saliency` for those that rank.
    """

    id: np.ndarray
    target: np.ndarray
    outputs: np.ndarray
    answers: dict[str, np.ndarray]
    sums: dict[str, tuple[np.ndarray, np.ndarray]]
    kept: dict[str, dict[str, np.ndarray]]

    def means(self) -> dict[str, float]:
        """The metrics over all records, summed in float64."""
        totals = {
            name: [part.astype(np.float64).sum() for part in parts]
            for name, parts in self.sums.items()
        }
        return {name: float(total / count) for name, (total, count) in totals.items()}

    def entries(self) -> dict[str, np.ndarray]:
        """Rows as one flat mapping: `id`, `target`, `loss` (by `sums`) and the answers."""
        loss = self.sums["loss"][0]
        return {"id": self.id, "target": self.target, "loss": loss, **self.answers}


def collect(eval_step: Any, params: Any, batches: Iterable[Batch], mesh: Mesh) -> Collected:
    """Runs a compiled evaluation step over a split.

    Args:
        eval_step: Result of `step.compile_eval_step`.
        params: Parameters of the model.
        batches: This process's rows of each batch; padding rows have weight 0.
        mesh: Mesh to spread each batch over.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        with jax.transfer_guard("disallow"):
            outputs = eval_step(params, put_batch(batch, mesh))
            if jax.process_count() > 1:
                outputs = multihost_utils.process_allgather(outputs, tiled=True)
            rows.append(jax.tree.map(np.asarray, jax.device_get(outputs)))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    order = np.argsort(joined["id"], kind="stable")
    order = order[joined["id"][order] >= 0]  # padding rows have id -1
    return Collected(**jax.tree.map(lambda x: x[order], joined))
