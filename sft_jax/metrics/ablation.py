"""Ablation of modalities: scores of a trained model with one of them masked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sft_jax.metrics.bootstrap import estimates
from sft_jax.types import Batch

# Outputs -> function from how often each sample counts to `{metric: value}`.
Scorer = Callable[[Mapping[str, np.ndarray]], Callable[[np.ndarray], Mapping[str, float]]]


def without(batches: Iterable[Batch], modality: str) -> Iterator[Batch]:
    """Masks a modality in batches; samples without another one become padding rows."""
    for batch in batches:
        masks = {**batch["mask"], modality: np.zeros_like(batch["mask"][modality])}
        inputs = {**batch["inputs"], modality: np.zeros_like(batch["inputs"][modality])}
        has_input = np.any([mask.any(axis=1) for mask in masks.values()], axis=0)
        yield Batch(
            inputs=inputs,
            mask=masks,
            target=batch["target"],
            weight=np.where(has_input, batch["weight"], 0).astype(batch["weight"].dtype),
            id=np.where(has_input, batch["id"], -1).astype(batch["id"].dtype),
        )


def ablation(
    complete: Mapping[str, np.ndarray],
    ablated: Mapping[str, Mapping[str, np.ndarray]],
    *,
    scorer: Scorer,
    split: str,
    step: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Scores without each modality: the content of `ablation_<split>.json`.

    Args:
        complete: Outputs on the split.
        ablated: Outputs by the modality that was masked, without samples that have no other one.
        scorer: Function that scores outputs whose samples may count several times.
        split: Name of the split.
        step: Optimizer steps that the model has taken.
        groups: Group of each sample; the bootstrap then resamples groups.
        seed: Seed of the bootstrap.
        replicates: Number of bootstrap replicates.

    Returns:
        `split`, `step`, `num_samples`, `resampled` ("sample" or "group") and `without`: for each
        modality `num_samples`, `left_out` (samples without another modality), `metrics`, and their
        `difference` to the complete input on the same samples, both `{metric: {value, low, high}}`
        from the same bootstrap replicates.
    """
    rows = {}
    metrics = tuple(scorer(complete)(np.ones(len(complete["id"]), np.int64)))
    for modality, outputs in ablated.items():
        chosen = np.isin(complete["id"], outputs["id"])
        rows[modality] = {
            "num_samples": int(chosen.sum()),
            "left_out": int((~chosen).sum()),
            **_compared(
                outputs,
                {name: values[chosen] for name, values in complete.items()},
                scorer,
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
    scorer: Scorer,
    metrics: tuple[str, ...],
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, dict[str, Any]]:
    count = len(outputs["id"])
    if not count:
        nothing = {"value": None, "low": None, "high": None}
        return {part: dict.fromkeys(metrics, nothing) for part in ("metrics", "difference")}

    scores = [scorer(rows) for rows in (outputs, complete)]

    def both(times: np.ndarray) -> np.ndarray:
        values, reference = (np.array(list(score(times).values())) for score in scores)
        return np.concatenate([values, values - reference])

    results = estimates(both, count, groups=groups, **bootstrap)
    return {
        "metrics": dict(zip(metrics, results, strict=False)),
        "difference": dict(zip(metrics, results[len(metrics) :], strict=True)),
    }
