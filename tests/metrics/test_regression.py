"""Regression metrics against scikit-learn and SciPy, with unknown targets and weights."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.metrics.regression import average, conformal_width, regression_scores
from sft_jax.types import DataError


@given(seed=st.integers(0, 100))
@settings(max_examples=25)
def test_scores_agree_with_other_libraries_and_unknown_targets_count_nowhere(seed):
    rng = np.random.default_rng(seed)
    predicted, target = rng.integers(0, 9, (2, 20, 2)).astype(float)
    target[rng.random(target.shape) < 0.2] = np.nan
    weight = rng.integers(0, 4, 20)
    weight[0] = 1
    found = regression_scores(predicted, target, weight)
    for i in range(2):
        known = np.repeat(np.arange(20), np.where(np.isnan(target[:, i]), 0, weight))
        x, y = predicted[known, i], target[known, i]
        assert found["mae"][i] == pytest.approx(sklearn.metrics.mean_absolute_error(y, x))
        assert found["rmse"][i] ** 2 == pytest.approx(sklearn.metrics.mean_squared_error(y, x))
        assert found["r2"][i] == pytest.approx(sklearn.metrics.r2_score(y, x))
        assert found["pearson"][i] == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
        assert found["spearman"][i] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        # Lin (1989): twice the covariance by both variances and the squared shift.
        covariance = np.mean((x - x.mean()) * (y - y.mean()))
        shift = (x.mean() - y.mean()) ** 2
        assert found["ccc"][i] == pytest.approx(2 * covariance / (x.var() + y.var() + shift))


def test_constant_sides_by_hand():
    target = np.array([[2.0, 2.0, 1.0, np.nan], [2.0, 2.0, 3.0, np.nan]])
    predicted = np.array([[2.0, 1.0, 2.0, 0.0], [2.0, 3.0, 2.0, 0.0]])
    found = regression_scores(predicted, target)
    np.testing.assert_array_equal(found["r2"], [1.0, 0.0, 0.0, np.nan])
    assert np.isnan(found["pearson"]).all()
    np.testing.assert_array_equal(found["ccc"], [np.nan, 0.0, 0.0, np.nan])
    assert average(found["mae"]) == pytest.approx(2 / 3)
    assert np.isnan(average(found["pearson"]))


def test_an_infinite_target_is_named():
    with pytest.raises(DataError, match=r"target: found shape .*1 infinite values"):
        regression_scores(np.zeros((3, 1)), np.array([[0.0], [np.inf], [1.0]]))


def test_widths_of_intervals_by_hand():
    residuals = np.array([3.0, 1.0, 2.0, 4.0])
    # Of five samples with the unseen one, 80 % are four, and 60 % three.
    assert conformal_width(residuals, 0.8) == 4.0
    assert conformal_width(residuals, 0.6) == 3.0
    assert conformal_width(residuals, 0.81) == np.inf
    assert conformal_width(np.zeros(0), 0.5) == np.inf
    # Weights count as copies; the unseen sample has the mean weight.
    assert conformal_width(residuals, 0.5, np.array([1, 1, 1, 5])) == 4.0


@given(seed=st.integers(0, 30), level=st.sampled_from([0.5, 0.8, 0.9]))
@settings(max_examples=20)
def test_an_exchangeable_sample_is_covered_at_least_as_often_as_stated(seed, level):
    residuals = np.abs(np.random.default_rng(seed).normal(size=40))
    inside = [residuals[i] <= conformal_width(np.delete(residuals, i), level) for i in range(40)]
    assert np.mean(inside) >= level
