"""Numbers of a run as rows of tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.config.modality import ModalitySpec
from sft_jax.metrics.bootstrap import estimates
from sft_jax.metrics.calibration import calibration_error, named_class
from sft_jax.reports.tables import change_interval, change_of, figure_of, interval_of


def metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric with its 95 % interval, N and the majority baseline.

    Metrics of sentiment come last, with how many samples each leaves out.
    """
    majority = {name: x for name, x in evaluation["majority"].items() if name != "class"}
    rows = [
        _metric_row(name, "sample", evaluation["num_samples"], estimate)
        | {"majority class": figure_of(name, majority.get(name))}
        for name, estimate in evaluation["metrics"].items()
    ]
    rows[0]["majority class"] += f" ({evaluation['majority']['class']})"
    group = evaluation["group"]
    if group is not None:
        rows.append(_metric_row("top1", "group", group["num_groups"], group["top1"]))
    for name, estimate in (evaluation.get("sentiment") or {}).items():
        row = _metric_row(name, "sample", estimate["num_samples"], estimate)
        row["majority class"] = figure_of(name, estimate["majority"])
        rows.append(row | {"left out": estimate["left_out"]})
    return rows


def _metric_row(name: str, level: str, n: int, estimate: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metric": name,
        "per": level,
        "value": figure_of(name, estimate["value"]),
        "95 % interval": interval_of(name, estimate),
        "N": n,
    }


def groups_of(
    evaluation: Mapping[str, Any], predictions: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """What the bootstrap of an evaluation drew: groups, or None for samples."""
    return predictions["group"] if evaluation["resampled"] == "group" else None


def calibration_row(
    evaluation: Mapping[str, Any], predictions: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Calibration of a split; intervals from the same groups as those of the other metrics."""
    label = predictions["label"]
    probabilities = predictions["probabilities"].astype(np.float64)
    confidence, correct = named_class(probabilities, label)
    squared = ((probabilities - np.eye(probabilities.shape[1])[label]) ** 2).sum(axis=1)

    def both(times: np.ndarray) -> np.ndarray:
        brier = times @ squared / times.sum()
        return np.array([calibration_error(confidence, correct, times), brier])

    ece, brier = estimates(both, len(label), seed=0, groups=groups_of(evaluation, predictions))
    return {
        "split": evaluation["split"],
        "ECE": None if ece["value"] is None else f"{100 * ece['value']:.1f}",
        "95 % interval": _points(ece),
        "mean confidence": f"{confidence.mean():.1%}",
        "top1": f"{correct.mean():.1%}",
        "gap": change_of("top1", float(confidence.mean() - correct.mean())),
        "Brier": f"{brier['value']:.4f}",
    }


def _points(estimate: Mapping[str, float | None]) -> str | None:
    """An interval of shares in percentage points."""
    low, high = estimate["low"], estimate["high"]
    return None if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def ablation_rows(
    evaluation: Mapping[str, Any], ablation: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The complete input first, then every modality that was taken away."""
    complete = {"N": ablation["num_samples"]}
    for name in ("top1", "macro_f1", "loss"):
        complete[name] = figure_of(name, evaluation["metrics"][name]["value"])
    rows = [{"input": "complete", **complete}]
    for modality, found in ablation["without"].items():
        row = {"input": f"without {modality}", "N": found["num_samples"]}
        for name, estimate in found["metrics"].items():
            row[name] = figure_of(name, estimate["value"])
        change = found["difference"]["top1"]
        row["change of top1"] = change_of("top1", change["value"])
        row["95 % interval"] = change_interval("top1", change)
        row["change of loss"] = change_of("loss", found["difference"]["loss"]["value"])
        if found["left_out"]:
            row["left out"] = found["left_out"]
        rows.append(row)
    return rows


def kept_share(spec: ModalitySpec, predictions: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Share of samples that keep each token, in order of time; None where no token is chosen.

    Tokens that cover the same stretch of time (patches of a spectrogram) are averaged.
    """
    counts = _kept_counts(spec, predictions)
    if counts is None:
        return None
    beside = math.prod(spec.grid[1:])
    return counts.reshape(-1, beside).mean(axis=1) / len(predictions["label"])


def kept_rows(
    specs: Sequence[ModalitySpec], predictions: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """For each modality whose pool chooses: how many tokens, and how the choice is spread."""
    rows = []
    for spec in specs:
        counts = _kept_counts(spec, predictions)
        if counts is None:
            continue
        share = counts / len(predictions["label"])
        most = int(np.argmax(share))
        rows.append(
            {
                "modality": spec.name,
                "pool": spec.pool,
                "tokens": spec.num_tokens,
                "kept of a sample": f"{share.sum():.4g}",
                "ever kept": int((counts > 0).sum()),
                "always kept": int((counts == len(predictions["label"])).sum()),
                "most often": f"token {most} ({share[most]:.0%})",
            }
        )
    return rows


def _kept_counts(spec: ModalitySpec, predictions: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """In how many samples each token was kept, `[t]`."""
    indices = predictions.get(f"kept/{spec.name}/indices")
    if indices is None:
        return None
    return np.bincount(indices[indices >= 0], minlength=spec.num_tokens)
