"""Calibration: reliability and expected calibration error (Guo et al. 2017, arXiv 1706.04599).

Confidence is the probability of the predicted class. Bins have equal width, `(low, high]`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from sft_jax.metrics.inputs import counted, distributions
from sft_jax.types import Array, DataError

NUM_BINS = 15


class Reliability(NamedTuple):
    """Samples binned by their confidence.

    Attributes:
        edges: Edges of the bins `[bins + 1]`, from 0 to 1.
        count: Number of samples `[bins]`.
        confidence: Mean confidence `[bins]`, NaN in empty bins.
        accuracy: Accuracy `[bins]`, NaN in empty bins.
    """

    edges: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap of confidence and accuracy, weighted by samples."""
        filled = self.count > 0
        gap = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float(self.count[filled] @ gap / self.count.sum())


def reliability(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """Confidence and accuracy by bins of confidence.

    Args:
        probabilities: Class probabilities of each sample.
        label: True class of each sample; ignored where `weight` is 0.
        weight: How often each row counts, 0 on padding; once if not given.
        num_bins: Number of bins.

    Raises:
        DataError: There is no bin or no row that counts, a row is not a distribution, or a label is
            not a class.
    """
    if num_bins < 1:
        raise DataError(f"reliability: found {num_bins} bins, expected at least 1; give more")
    probabilities, label, times = distributions(probabilities, label, weight)
    return binned(*confidence_and_hits(probabilities, label), times, num_bins)


def confidence_and_hits(
    probabilities: Float[np.ndarray, "n c"], label: Int[Array, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Confidence of each sample, and 1 if the predicted class is correct, else 0."""
    correct = probabilities.argmax(axis=1) == np.asarray(label)
    return probabilities.max(axis=1), correct.astype(np.float64)


def calibration_error(
    confidence: Float[np.ndarray, " n"],
    correct: Float[np.ndarray, " n"],
    weight: Real[Array, " n"] | None = None,
    num_bins: int = NUM_BINS,
) -> float:
    """Expected calibration error from the results of `confidence_and_hits`."""
    return binned(confidence, correct, counted(weight, len(correct)), num_bins).error


def binned(
    confidence: Float[np.ndarray, " n"],
    correct: Float[np.ndarray, " n"],
    times: Real[np.ndarray, " n"] | None = None,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """The same from confidences, and 1 or 0 for what came true."""
    times = np.ones(len(correct)) if times is None else times
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(place, weights=times, minlength=num_bins)
    sums = [np.bincount(place, times * values, num_bins) for values in (confidence, correct)]
    means = [
        np.divide(total, count, out=np.full(num_bins, np.nan), where=count > 0) for total in sums
    ]
    return Reliability(np.linspace(0, 1, num_bins + 1), count.astype(np.int64), *means)
