"""Exact evaluation: every record of a split once, outputs gathered in record order."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sft_jax.training.sharding import put_batch
from sft_jax.types import Batch


def collect(
    eval_step: Any, params: Any, batches: Iterable[Batch], mesh: Mesh
) -> dict[str, np.ndarray]:
    """Runs a compiled evaluation step over a split.

    Args:
        eval_step: from `step.compile_eval_step`.
        params: the model's parameters.
        batches: this process's rows of each batch; padding rows have weight 0.
        mesh: to spread each batch over.

    Returns:
        Arrays `[N, ...]` over the real records, in order of `id`: `id`, `label`, `loss`, `logits`,
        `probabilities`, and `kept/<m>/indices` for pools that select, with `kept/<m>/saliency`
        for those of them that look at it.
    """
    rows: list[dict[str, np.ndarray]] = []
    for batch in batches:
        with jax.transfer_guard("disallow"):
            outputs = eval_step(params, put_batch(batch, mesh))
            if jax.process_count() > 1:
                outputs = multihost_utils.process_allgather(outputs, tiled=True)
            rows.append(jax.tree.map(np.asarray, jax.device_get(outputs)))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    kept = joined.pop("kept")
    for name, parts in kept.items():
        joined |= {f"kept/{name}/{part}": value for part, value in parts.items()}
    order = np.argsort(joined["id"], kind="stable")
    order = order[joined["id"][order] >= 0]  # padding rows have id -1
    return {name: value[order] for name, value in joined.items()}


def mean_metrics(outputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean loss and top-1 accuracy of collected outputs, in float64."""
    correct = outputs["probabilities"].argmax(axis=-1) == outputs["label"]
    return {
        "loss": float(outputs["loss"].astype(np.float64).mean()),
        "top1": float(correct.mean()),
    }
