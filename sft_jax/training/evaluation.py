"""Exact evaluation: every record of a split once, outputs gathered in record order."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sft_jax.tasks.base import Task
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.sharding import BATCH, put_batch
from sft_jax.training.step import ApplyFn
from sft_jax.types import Batch


@standard_promotion
def eval_outputs(params: Any, batch: Batch, *, apply: ApplyFn, task: Task) -> dict[str, Any]:
    """Outputs, answers, metrics and kept tokens of every row; deterministic.

    Ids and targets are passed through, so that rows stay together in any order of devices.

    Returns:
        `id`, `target`, `weight`, `outputs [b, o]`, `answers`, `sums` (from `task.sums`) and `kept`.
    """
    output = apply(params, batch["inputs"], batch["mask"], None)
    kept = {
        name: {"indices": pooled.indices}
        | ({} if pooled.saliency is None else {"saliency": pooled.saliency})
        for name, pooled in output.pooled.items()
        if pooled.indices is not None
    }
    return {
        "id": batch["id"],
        "target": batch["target"],
        "weight": batch["weight"],
        "outputs": output.logits,
        "answers": task.answer(output.logits),
        "sums": task.sums(output.logits, batch["target"]),
        "kept": kept,
    }


def compile_eval_step(apply: ApplyFn, task: Task, mesh: Mesh) -> Any:
    """Jits `eval_outputs` over a mesh: `(params, batch) -> outputs`; rows stay in place."""
    outputs = jax.shard_map(
        functools.partial(eval_outputs, apply=apply, task=task),
        mesh=mesh,
        in_specs=(PartitionSpec(), BATCH),
        out_specs=BATCH,
        check_vma=False,
    )
    return jax.jit(outputs, out_shardings=NamedSharding(mesh, BATCH))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """Outputs of a model for the `n` real records of a split, in order of `id`.

    Attributes:
        id: Position of each record in its split `[n]`.
        target: True targets `[n, ...]`.
        weight: What each record counts `[n]`.
        outputs: Outputs of the model's head `[n, o]`.
        answers: Result of `Task.answer`, `{name: [n, ...]}`.
        sums: Result of `Task.sums`, `{name: (sum [n], count [n])}`.
        kept: `{m: {indices: [n, k]}}` of pools that select tokens, with `saliency` if they rank.
    """

    id: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    outputs: np.ndarray
    answers: dict[str, np.ndarray]
    sums: dict[str, tuple[np.ndarray, np.ndarray]]
    kept: dict[str, dict[str, np.ndarray]]

    def means(self) -> dict[str, float]:
        """Mean of each metric over all records by their weights, in float64; 0 if the count is."""
        totals = {
            name: [(part.astype(np.float64) * self.weight).sum() for part in parts]
            for name, parts in self.sums.items()
        }
        return {name: float(total / (count or 1.0)) for name, (total, count) in totals.items()}

    def entries(self) -> dict[str, np.ndarray]:
        """All rows as one flat mapping: `id`, `target`, `weight`, `loss` (of `sums`), answers."""
        rows = {"id": self.id, "target": self.target, "weight": self.weight}
        return {**rows, "loss": self.sums["loss"][0], **self.answers}


def collect(eval_step: Any, params: Any, batches: Iterable[Batch], mesh: Mesh) -> Collected:
    """Runs a compiled evaluation step over a split.

    Args:
        eval_step: Result of `compile_eval_step`.
        params: Parameters of the model.
        batches: Rows of this process of each batch; padding rows have weight 0.
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
    joined["answers"] = host_answers(joined["answers"])
    order = np.argsort(joined["id"], kind="stable")
    order = order[joined["id"][order] >= 0]  # padding rows have id -1
    return Collected(**jax.tree.map(lambda x: x[order], joined))


def host_answers(answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answers computed on devices, with integers as the int64 that files and users expect."""
    return {
        name: values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values
        for name, values in answers.items()
    }
