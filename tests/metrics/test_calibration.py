import numpy as np
import pytest

from sft_jax.metrics.calibration import calibration_error, confidence_and_hits, reliability
from sft_jax.types import DataError


def two_classes(confidence):
    confidence = np.asarray(confidence, np.float64)
    return np.stack([confidence, 1 - confidence], axis=1)


def test_bins_by_hand():
    # Ten bins: 0.62 and 0.68 share one, 0.95 has its own, 1.0 belongs to the last.
    found = reliability(two_classes([0.62, 0.68, 0.95, 1.0]), np.array([0, 1, 0, 0]), num_bins=10)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2]
    np.testing.assert_allclose(found.confidence[[6, 9]], [0.65, 0.975])
    np.testing.assert_allclose(found.accuracy[[6, 9]], [0.5, 1.0])
    assert np.isnan(found.confidence[:6]).all()
    # (2 * 0.15 + 2 * 0.025) / 4
    assert found.error == pytest.approx(0.0875)


def test_an_upper_edge_belongs_to_its_bin():
    found = reliability(two_classes([0.75, 0.7500001]), np.array([0, 0]), num_bins=4)
    assert found.count.tolist() == [0, 0, 1, 1]


def test_a_weight_counts_a_row_as_often(rng):
    probabilities = rng.dirichlet(np.ones(4), 30)
    label, times = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
    repeated = [np.repeat(rows, times, axis=0) for rows in (probabilities, label)]
    weighted = reliability(probabilities, label, times)
    assert weighted.error == pytest.approx(reliability(*repeated).error)
    assert weighted.count.sum() == times.sum()
    error = calibration_error(*confidence_and_hits(probabilities, label), times)
    assert error == pytest.approx(weighted.error)


def test_padding_rows_may_hold_anything():
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan]])
    found = reliability(probabilities, np.array([0, -7]), np.array([1, 0]))
    assert found.error == pytest.approx(0.1)


def test_a_perfect_forecast_has_no_error():
    # 60 % confidence, right six times out of ten.
    found = reliability(two_classes([0.6] * 10), np.array([0] * 6 + [1] * 4))
    assert found.error == pytest.approx(0)


def test_no_bin_is_an_error():
    with pytest.raises(DataError, match="found 0 bins, expected at least 1"):
        reliability(two_classes([0.6]), np.array([0]), num_bins=0)
