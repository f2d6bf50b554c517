"""Do probabilities mean what they say? Reliability and expected calibration error.

Confidence is the probability of the class that is named. Bins are of equal width, `(low, high]`,
as in Guo et al. 2017 (arXiv 1706.04599).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from sft_jax.metrics.inputs import counted, distributions
from sft_jax.types import Array, DataError

NUM_BINS = 15


class Reliability(NamedTuple):
    """Samples by their confidence.

    Attributes:
        edges: `[bins + 1]` of the bins, from 0 to 1.
        count: `[bins]` samples.
        confidence: `[bins]` their mean confidence, NaN where there is none.
        accuracy: `[bins]` their top-1 as a fraction, NaN where there is none.
    """

    edges: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # tuple.count, which nobody needs here
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Mean gap between confidence and accuracy of the bins, weighted by their samples."""
        filled = self.count > 0
        gap = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float(self.count[filled] @ gap / self.count.sum())


def reliability(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
    num_bins: int = NUM_BINS,
) -> Reliability:
    """Confidence and accuracy of every bin.

    Args:
        probabilities: class probabilities of each sample.
        label: true class of each sample; anything where `weight` is 0.
        weight: how often each row counts, 0 on padding; every row once where left out.
        num_bins: bins between 0 and 1.

    Raises:
        DataError: no bin, a row that is no distribution, a label that is no class, or no row that
            counts.
    """
    if num_bins < 1:
        raise DataError(f"reliability: found {num_bins} bins, expected at least 1; give more")
    probabilities, label, times = distributions(probabilities, label, weight)
    return _binned(*named_class(probabilities, label), times, num_bins)


def named_class(
    probabilities: Float[np.ndarray, "n c"], label: Int[Array, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Confidence of each sample, and 1 where the class it names is the true one, else 0."""
    correct = probabilities.argmax(axis=1) == np.asarray(label)
    return probabilities.max(axis=1), correct.astype(np.float64)


def calibration_error(
    confidence: Float[np.ndarray, " n"],
    correct: Float[np.ndarray, " n"],
    weight: Real[Array, " n"] | None = None,
    num_bins: int = NUM_BINS,
) -> float:
    """Expected calibration error of samples given by `named_class`; weights as in `reliability`."""
    return _binned(confidence, correct, counted(weight, len(correct)), num_bins).error


def _binned(
    confidence: np.ndarray, correct: np.ndarray, times: np.ndarray, num_bins: int
) -> Reliability:
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(place, weights=times, minlength=num_bins)
    sums = [np.bincount(place, times * values, num_bins) for values in (confidence, correct)]
    means = [
        np.divide(total, count, out=np.full(num_bins, np.nan), where=count > 0) for total in sums
    ]
    return Reliability(np.linspace(0, 1, num_bins + 1), count.astype(np.int64), *means)
