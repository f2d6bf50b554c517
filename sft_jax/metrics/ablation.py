"""How much a trained model leans on each modality: its scores with one of them taken away."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sft_jax.metrics.bootstrap import estimates
from sft_jax.types import Batch

# From outputs and how often each sample counts to `{metric: value}`.
Score = Callable[[Mapping[str, np.ndarray], np.ndarray], Mapping[str, float]]


def without(batches: Iterable[Batch], modality: str) -> Iterator[Batch]:
    """Batches in which no sample has a real step of `modality`.

    A sample with nothing else in it becomes a padding row, since there is nothing to classify.
    """
    for batch in batches:
        masks = {**batch["mask"], modality: np.zeros_like(batch["mask"][modality])}
        inputs = {**batch["inputs"], modality: np.zeros_like(batch["inputs"][modality])}
        left = np.any([mask.any(axis=1) for mask in masks.values()], axis=0)
        yield Batch(
            inputs=inputs,
            mask=masks,
            target=batch["target"],
            weight=np.where(left, batch["weight"], 0).astype(batch["weight"].dtype),
            id=np.where(left, batch["id"], -1).astype(batch["id"].dtype),
        )


def ablation(
    complete: Mapping[str, np.ndarray],
    ablated: Mapping[str, Mapping[str, np.ndarray]],
    *,
    score: Score,
    split: str,
    step: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """What the model loses without each modality: the content of `ablation_<split>.json`.

    Args:
        complete: outputs of `evaluation.collect` on the split.
        ablated: the same by the modality that was taken away; samples that had no other one are
            not there.
        score: Metrics of some outputs, whose samples may count several times.
        split: its name.
        step: of the optimizer.
        groups: name of each sample's group, for the bootstrap to draw.
        seed: draws the bootstrap.
        replicates: of the bootstrap.

    Returns:
        `split`, `step`, `num_samples`, `resampled` ("sample" or "group") and `without`: for each
        modality `num_samples`, `left_out` (samples that had nothing else), `metrics` and
        `difference` to the complete input on the same samples, each of the latter
        `{metric: {value, low, high}}`, from the same draws.
    """
    rows = {}
    metrics = tuple(score(complete, np.ones(len(complete["id"]), np.int64)))
    for modality, outputs in ablated.items():
        chosen = np.isin(complete["id"], outputs["id"])
        rows[modality] = {
            "num_samples": int(chosen.sum()),
            "left_out": int((~chosen).sum()),
            **_compared(
                outputs,
                {name: values[chosen] for name, values in complete.items()},
                score,
                metrics,
                None if groups is None else groups[chosen],
                {"seed": seed, "replicates": replicates},
            ),
        }
    return {
        "split": split,
        "step": step,
        "num_samples": len(complete["id"]),
        "resampled": "sample" if groups is None else "group",
        "without": rows,
    }


def _compared(
    outputs: Mapping[str, np.ndarray],
    complete: Mapping[str, np.ndarray],
    score: Score,
    metrics: tuple[str, ...],
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, dict[str, Any]]:
    count = len(outputs["id"])
    if not count:
        nothing = {"value": None, "low": None, "high": None}
        return {part: dict.fromkeys(metrics, nothing) for part in ("metrics", "difference")}

    def both(times: np.ndarray) -> np.ndarray:
        own, reference = (
            np.array(list(score(rows, times).values())) for rows in (outputs, complete)
        )
        return np.concatenate([own, own - reference])

    found = estimates(both, count, groups=groups, **bootstrap)
    return {
        "metrics": dict(zip(metrics, found, strict=False)),
        "difference": dict(zip(metrics, found[len(metrics) :], strict=True)),
    }
