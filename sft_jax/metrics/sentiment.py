"""Metrics of sentiment, a number in about [-3, 3] that may be rounded to classes.

The regression view compares predicted and true numbers. The classification view, which the paper
uses, compares the predicted class with the rounded truth. Definitions by name:

- `mae`: mean absolute error; `corr`: Pearson's correlation.
- `acc7`, `acc5`: both clipped to +-3 (+-2), rounded half to even, and equal.
- `acc2_nonzero`: prediction > 0 and truth > 0 agree, over samples whose truth is not 0.
- `acc2_has0`: the same over all samples; a truth of 0 counts as not positive.
- `acc2_nonneg`: prediction >= 0 and truth >= 0 agree, over all samples.
- `acc2` (classification): rounded prediction >= 0 and rounded truth >= 0 agree, over samples whose
  rounded truth is not 0. With the classes -3 to 3: class index >= 3.
- `f1`, `f1_nonzero`, `f1_has0`, `f1_nonneg`: F1 of both signs in the same setting, weighted by how
  often each is *predicted*. Published numbers are computed this way, by code that passes the
  predictions to `sklearn.metrics.f1_score` as the truth.

`weight` may be any whole numbers, so that a bootstrap draw is one call.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from sft_jax.metrics.bootstrap import estimates
from sft_jax.metrics.inputs import counted, finite
from sft_jax.types import Array

REGRESSION = (
    *("mae", "corr", "acc7", "acc5"),
    *("acc2_nonzero", "f1_nonzero", "acc2_has0", "f1_has0", "acc2_nonneg", "f1_nonneg"),
)
CLASSIFICATION = ("acc2", "f1")


def mean_absolute_error(
    predicted: Float[Array, " n"],
    truth: Float[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> float:
    """Mean of `|predicted - truth|`."""
    predicted, truth, times = _checked(predicted, truth, weight)
    return float(times @ np.abs(predicted - truth) / times.sum())


def correlation(
    predicted: Float[Array, " n"],
    truth: Float[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> float | None:
    """Pearson's correlation; None if either side is constant."""
    predicted, truth, times = _checked(predicted, truth, weight)
    predicted, truth = predicted[times > 0], truth[times > 0]
    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return None
    times = times[times > 0]
    predicted = predicted - times @ predicted / times.sum()
    truth = truth - times @ truth / times.sum()
    covariance, *variances = (
        times @ (a * b) for a, b in ((predicted, truth), (predicted, predicted), (truth, truth))
    )
    return float(covariance / np.sqrt(variances[0]) / np.sqrt(variances[1]))


def rounded_accuracy(
    predicted: Float[Array, " n"],
    truth: Float[Array, " n"],
    limit: int,
    weight: Real[Array, " n"] | None = None,
) -> float:
    """Share of samples equal after clipping to `+-limit` and rounding half to even."""
    predicted, truth, times = _checked(predicted, truth, weight)
    same = np.rint(np.clip(predicted, -limit, limit)) == np.rint(np.clip(truth, -limit, limit))
    return float(times @ same / times.sum())


def binary_scores(
    predicted: Bool[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    times: Real[np.ndarray, " n"],
) -> tuple[float | None, float | None]:
    """Accuracy, and F1 of both signs weighted by how often each is predicted; None without samples.

    Args:
        predicted: Predicted sign of each sample.
        truth: True sign of each sample.
        times: How often each sample counts.
    """
    cells = np.bincount(2 * truth + predicted, weights=times, minlength=4).reshape(2, 2)
    right, called, support = np.diagonal(cells), cells.sum(axis=0), cells.sum(axis=1)
    if not cells.sum():
        return None, None
    f1 = 2 * right / np.where(called + support > 0, called + support, 1)
    return float(right.sum() / cells.sum()), float(f1 @ called / cells.sum())


def regression_view(
    predicted: Float[Array, " n"],
    truth: Float[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, float | None]:
    """Every metric of `REGRESSION`, by name; None if undefined.

    Args:
        predicted: Predicted sentiment of each sample.
        truth: True sentiment of each sample.
        weight: How often each row counts, 0 on padding; once if not given.

    Raises:
        DataError: A number that counts is not finite, or no row counts.
    """
    predicted, truth, times = _checked(predicted, truth, weight)
    above, positive = predicted > 0, truth > 0
    binary = (
        *binary_scores(above, positive, np.where(truth != 0, times, 0)),
        *binary_scores(above, positive, times),
        *binary_scores(predicted >= 0, truth >= 0, times),
    )
    values = (
        mean_absolute_error(predicted, truth, times),
        correlation(predicted, truth, times),
        rounded_accuracy(predicted, truth, 3, times),
        rounded_accuracy(predicted, truth, 2, times),
        *binary,
    )
    return dict(zip(REGRESSION, values, strict=True))


def classification_view(
    predicted: Real[Array, " n"],
    truth: Real[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, float | None]:
    """Every metric of `CLASSIFICATION`, by name; None if every rounded truth is 0.

    Args:
        predicted: Sentiment of the predicted class of each sample (class index - 3 for 7 classes).
        truth: True sentiment of each sample, or that of the true class.
        weight: How often each row counts, 0 on padding; once if not given.

    Raises:
        DataError: A number that counts is not finite, or no row counts.
    """
    predicted, truth, times = _checked(predicted, truth, weight)
    predicted, truth = np.rint(predicted), np.rint(truth)
    scores = binary_scores(predicted >= 0, truth >= 0, np.where(truth != 0, times, 0))
    return dict(zip(CLASSIFICATION, scores, strict=True))


def sentiment_block(
    probabilities: Float[np.ndarray, "n c"],
    value: Float[np.ndarray, " n"] | None,
    class_values: Sequence[float],
    train_counts: Int[Array, " c"],
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, Any] | None:
    """Both views of a classifier whose classes are levels of sentiment; every row counts.

    The regression view scores the expected value `sum_c p_c * class_values[c]`, the classification
    view the value of the most probable class.

    Args:
        probabilities: Class probabilities of each sample.
        value: True sentiment of each sample, not rounded; None if the data have none.
        class_values: Sentiment of each class.
        train_counts: Samples of each class in the training split, for the baseline.
        groups: See `bootstrap.bootstrap_interval`.
        bootstrap: `seed` and `replicates` of `bootstrap.bootstrap_interval`.
        weight: How much each row counts; once if not given.

    Returns:
        None without `value`, else `{value, low, high, majority, num_samples, left_out}` by metric.
        `majority` is the score of a constant prediction, the most frequent in the training split:
        its class for `mae`, `acc7` and `acc5`, its sign for the others.
    """
    if value is None:
        return None
    values = np.asarray(class_values, np.float64)
    expected = probabilities @ values / probabilities.sum(axis=1)
    named = values[probabilities.argmax(axis=1)]

    base = counted(weight, len(value))

    def statistic(times: np.ndarray) -> np.ndarray:
        times = times * base
        scores = regression_view(expected, value, times) | classification_view(named, value, times)
        return np.array([np.nan if score is None else score for score in scores.values()])

    scores = estimates(statistic, len(value), groups=groups, **bootstrap)
    majority = _majority(values, np.asarray(train_counts), value, base)
    zero, rounded_zero = int((value == 0).sum()), int((np.rint(value) == 0).sum())
    left_out = dict.fromkeys(("acc2_nonzero", "f1_nonzero"), zero)
    left_out |= dict.fromkeys(CLASSIFICATION, rounded_zero)
    block = {}
    for name, score in zip((*REGRESSION, *CLASSIFICATION), scores, strict=True):
        missing = left_out.get(name, 0)
        block[name] = {
            **score,
            "majority": majority[name],
            "num_samples": len(value) - missing,
            "left_out": missing,
        }
    return block


def _majority(
    values: np.ndarray, train_counts: np.ndarray, truth: np.ndarray, weight: np.ndarray
) -> dict[str, float | None]:
    """Each metric of a constant prediction; ties go to the lowest class and the negative sign."""

    def sign(positive: np.ndarray, negative: np.ndarray) -> float:
        return 1.0 if train_counts[positive].sum() > train_counts[negative].sum() else -1.0

    rounded = np.rint(values)
    nonzero = sign(rounded > 0, rounded < 0)
    answers = {
        "nonzero": nonzero,
        "has0": sign(rounded > 0, rounded <= 0),
        "nonneg": sign(rounded >= 0, rounded < 0),
        "": values[np.argmax(train_counts)],
    }
    constant = {
        kind: regression_view(np.full(len(truth), answer), truth, weight)
        for kind, answer in answers.items()
    }
    chosen = {name: constant[name.partition("_")[2]][name] for name in REGRESSION}
    return chosen | classification_view(np.full(len(truth), nonzero), truth, weight)


def _checked(
    predicted: Array, truth: Array, weight: Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    times = counted(weight, len(truth))
    return finite("predicted", predicted, times), finite("truth", truth, times), times
