"""Exact metrics of regression over a split, for each output, in float64.

A NaN target is unknown and counts nowhere. `weight` is how much a row counts. Letters: `n` rows,
`r` outputs.
"""

import numpy as np
from jaxtyping import Float, Real
from scipy.stats import rankdata

from sft_jax.metrics.inputs import counted, finite
from sft_jax.types import Array, DataError

NAMES = ("mae", "rmse", "r2", "pearson", "spearman", "ccc")


def regression_scores(
    predicted: Float[Array, "n r"],
    target: Float[Array, "n r"],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, Float[np.ndarray, " r"]]:
    """Every metric of `NAMES` for each output; NaN where undefined.

    `mae` and `rmse` are in the units of the target. `r2` is 0 for a constant target, or 1 if it is
    predicted exactly. `pearson` and `spearman` (average ranks for ties) are undefined if a side is
    constant. `ccc` is the concordance correlation of Lin (1989) with population moments, undefined
    if both sides are constant and equal.

    Args:
        predicted: Predicted value of each output.
        target: True value; NaN is unknown.
        weight: How much each row counts, 0 on padding; once if not given.

    Raises:
        DataError: The shapes differ, a prediction that counts is not finite, or a target infinite.
    """
    times = counted(weight, len(target))
    predicted, target = finite("predicted", predicted, times), np.asarray(target, np.float64)
    if predicted.shape != target.shape or np.isinf(target[times > 0]).any():
        raise DataError(
            f"target: found shape {target.shape} for predictions of shape {predicted.shape}, with "
            f"{int(np.isinf(target).sum())} infinite values, expected one finite value or NaN for "
            "each prediction; check the data"
        )
    columns = []
    for values, truth in zip(predicted.T, target.T, strict=True):
        known = ~np.isnan(truth) & (times > 0)
        columns.append(_scores_of(values[known], truth[known], times[known]))
    return {name: np.array([column[name] for column in columns]) for name in NAMES}


def average(scores: Float[np.ndarray, " r"]) -> float:
    """Mean over the outputs where a metric is defined; NaN if there is none."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else float("nan")


def _scores_of(predicted: np.ndarray, truth: np.ndarray, times: np.ndarray) -> dict[str, float]:
    if not truth.size:
        return dict.fromkeys(NAMES, float("nan"))
    total = times.sum()
    error = predicted - truth
    squared = times @ error**2 / total
    centred, expected = (x - times @ x / total for x in (predicted, truth))
    spread, variance = (times @ x**2 / total for x in (centred, expected))
    covariance = times @ (centred * expected) / total
    constant = np.ptp(truth) == 0
    r2 = float(squared == 0) if constant else 1 - squared / variance
    distance = spread + variance + (times @ (predicted - truth) / total) ** 2
    if constant and np.ptp(predicted) == 0:
        ccc = float("nan") if predicted[0] == truth[0] else 0.0
    else:
        ccc = 2 * covariance / distance
    return {
        "mae": float(times @ np.abs(error) / total),
        "rmse": float(np.sqrt(squared)),
        "r2": float(r2),
        "pearson": _correlation(predicted, truth, times),
        "spearman": _correlation(_ranks(predicted, times), _ranks(truth, times), times),
        "ccc": float(ccc),
    }


def _correlation(a: np.ndarray, b: np.ndarray, times: np.ndarray) -> float:
    """Pearson's correlation of weighted pairs; NaN if either side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = (x - times @ x / times.sum() for x in (a, b))
    return float(times @ (a * b) / np.sqrt(times @ a**2) / np.sqrt(times @ b**2))


def _ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Average ranks of values of which each counts `times` times."""
    if np.ptp(times) == 0:
        return rankdata(values)
    distinct, member = np.unique(values, return_inverse=True)
    mass = np.bincount(member, weights=times, minlength=len(distinct))
    return (np.cumsum(mass) - (mass - 1) / 2)[member]


def conformal_width(
    residuals: Float[np.ndarray, " n"], level: float, weight: Real[Array, " n"] | None = None
) -> float:
    """Half-width of a split-conformal interval (Lei et al., 2018, algorithm 2).

    The smallest absolute residual that, with one unseen sample added, covers `level` of the mass.
    With too few samples for that level it is infinite.

    Args:
        residuals: Absolute residuals of samples that the model was not trained on.
        level: Coverage, between 0 and 1.
        weight: How much each sample counts; once if not given.
    """
    times = counted(weight, len(residuals)) if len(residuals) else np.zeros(0)
    order = np.argsort(residuals, kind="stable")
    mass = np.cumsum(times[order])
    needed = level * (times.sum() + (times.mean() if len(times) else 1.0))
    first = int(np.searchsorted(mass, needed * (1 - 1e-12)))
    return float(residuals[order][first]) if first < len(residuals) else float("inf")
