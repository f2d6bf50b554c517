"""Moments of the training split, gathered record by record in one pass."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Num

from sft_jax.data.records import ModalityStatistics


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviations of time steps seen so far, in float64.

    Kept as deviations from the mean, since a difference of two sums of squares loses the
    variance of a feature with a large offset.
    """

    count: int
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def zero(cls, feature_dim: int) -> "Moments":
        """Moments of nothing."""
        return cls(0, np.zeros(feature_dim), np.zeros(feature_dim))

    def add(self, steps: Num[np.ndarray, "t f"], mask: Bool[np.ndarray, "t"]) -> "Moments":
        """Moments with the real steps of one more record (pairwise update of Chan et al., 1983)."""
        real = steps[mask].astype(np.float64)
        if not len(real):
            return self
        mean = real.mean(0)
        count = self.count + len(real)
        step = mean - self.mean
        return Moments(
            count,
            self.mean + step * (len(real) / count),
            self.deviations
            + ((real - mean) ** 2).sum(0)
            + step**2 * (self.count * len(real) / count),
        )

    def statistics(self) -> ModalityStatistics:
        """Mean, standard deviation and root mean square; zeros when nothing was seen."""
        variance = self.deviations / max(self.count, 1)
        return ModalityStatistics(
            mean=tuple(self.mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
            rms=float(np.sqrt(np.mean(variance + self.mean**2))),
            count=self.count,
        )
