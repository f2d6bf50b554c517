import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sft_jax.metrics import bootstrap, sentiment
from sft_jax.types import DataError

# Halves, zeros of both signs, and numbers beyond the clip.
NUMBERS = st.integers(-8, 8).map(lambda x: x / 2) | st.sampled_from([-0.0, 1 / 3, -1 / 3, 3.7])


@st.composite
def pairs(draw):
    """Predictions, truths, and how often each row counts."""
    n = draw(st.integers(1, 10))
    predicted = draw(hnp.arrays(np.float64, n, elements=NUMBERS))
    truth = draw(hnp.arrays(np.float64, n, elements=NUMBERS))
    times = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 3)))
    times[0] = max(times[0], 1)
    return predicted, truth, times


def binary_by_scikit_learn(predicted, truth):
    """The field's order of arguments: F1 takes the prediction for the truth."""
    if not predicted.size:
        return None, None
    return (
        sklearn.metrics.accuracy_score(truth, predicted),
        sklearn.metrics.f1_score(predicted, truth, average="weighted"),
    )


def slow(predicted, truth):
    """Every metric of both views, row by row or from scikit-learn."""
    nonzero = truth != 0

    def same(limit):
        # Python's round is half to even as well.
        rounded = [
            [round(max(-limit, min(limit, x))) for x in side.tolist()]
            for side in (predicted, truth)
        ]
        return sklearn.metrics.accuracy_score(*rounded)

    constant = len(set(predicted.tolist())) == 1 or len(set(truth.tolist())) == 1
    values = [
        sklearn.metrics.mean_absolute_error(truth, predicted),
        None if constant else np.corrcoef(predicted, truth)[0, 1],
        same(3),
        same(2),
        *binary_by_scikit_learn(predicted[nonzero] > 0, truth[nonzero] > 0),
        *binary_by_scikit_learn(predicted > 0, truth > 0),
        *binary_by_scikit_learn(predicted >= 0, truth >= 0),
    ]
    kept = np.rint(truth) != 0
    classes = binary_by_scikit_learn(np.rint(predicted)[kept] >= 0, np.rint(truth)[kept] >= 0)
    return dict(zip(sentiment.REGRESSION, values, strict=True)), dict(
        zip(sentiment.CLASSIFICATION, classes, strict=True)
    )


@given(pairs())
@settings(max_examples=200)
def test_agrees_with_scikit_learn(pair):
    predicted, truth, times = pair
    regression, classification = slow(np.repeat(predicted, times), np.repeat(truth, times))
    found = sentiment.regression_view(predicted, truth, times)
    assert found == pytest.approx(regression, abs=1e-12)
    assert list(found) == list(sentiment.REGRESSION)
    assert sentiment.classification_view(predicted, truth, times) == pytest.approx(classification)


@given(pairs(), st.sampled_from([np.nan, np.inf, 9.0]))
def test_padding_changes_nothing(pair, filling):
    predicted, truth, times = pair
    weight = np.minimum(times, 1)
    padded = (np.where(weight > 0, side, filling) for side in (predicted, truth))
    real = weight > 0
    assert sentiment.regression_view(*padded, weight) == sentiment.regression_view(
        predicted[real], truth[real]
    )


def test_regression_by_hand():
    predicted = np.array([0.5, -0.5, 2.5, -3.4, 0.2, -1.0], np.float32)
    truth = np.array([1.0, 0.0, 3.0, -3.0, 0.0, 2.0], np.float32)
    found = sentiment.regression_view(predicted, truth)
    assert found["mae"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.4 + 0.2 + 3) / 6)
    # Rounded: 0 0 2 -3 0 -1 against 1 0 3 -3 0 2; clipped at 2: 0 0 2 -2 0 -1, 1 0 2 -2 0 2.
    assert found["acc7"] == pytest.approx(3 / 6)
    assert found["acc5"] == pytest.approx(4 / 6)
    # Truth not 0: rows 0, 2, 3 right, row 5 wrong. F1: positive 4/5, negative 2/3.
    assert found["acc2_nonzero"] == pytest.approx(3 / 4)
    assert found["f1_nonzero"] == pytest.approx((2 * 4 / 5 + 2 * 2 / 3) / 4)
    # With rows 1 (right: not positive) and 4 (wrong).
    assert found["acc2_has0"] == pytest.approx(4 / 6)
    assert found["f1_has0"] == pytest.approx(4 / 6)
    # >= 0: row 1 is wrong now, and row 4 right.
    assert found["acc2_nonneg"] == pytest.approx(4 / 6)
    assert found["f1_nonneg"] == pytest.approx((3 * 6 / 8 + 3 * 2 / 4) / 6)


def test_weighted_f1_goes_by_what_was_predicted():
    # Always positive against one positive in four: its F1 of 2/5 has all the weight.
    predicted, truth = np.ones(4, bool), np.array([True, False, False, False])
    assert sentiment.binary_scores(predicted, truth, np.ones(4, int)) == (0.25, pytest.approx(0.4))


def test_classification_by_hand():
    # Class index - 3. Row 2 is left out (0.5 rounds to 0); predicted neutral counts as positive.
    predicted = np.array([0, -1, 2, 3, -2])
    truth = np.array([1.2, -0.6, 0.5, -3.0, -1.5])
    found = sentiment.classification_view(predicted, truth)
    assert found["acc2"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx((2 * 2 / 3 + 2 * 4 / 5) / 4)


def test_undefined_is_none():
    flat = sentiment.regression_view(np.full(3, 0.1), np.zeros(3))
    undefined = {name for name, value in flat.items() if value is None}
    assert undefined == {"corr", "acc2_nonzero", "f1_nonzero"}
    assert sentiment.classification_view(np.ones(3), np.array([0.5, -0.5, 0.0])) == {
        "acc2": None,
        "f1": None,
    }


VALUES = (-2.0, -1.0, 0.0, 1.0, 2.0)
DRAWS = {"seed": 1, "replicates": 100}


def block(value, counts=(1, 2, 9, 5, 3), groups=None):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), len(value))
    return probabilities, sentiment.sentiment_block(
        probabilities, value, VALUES, np.array(counts), groups, DRAWS
    )


def test_block_judges_the_expected_value_and_the_likeliest_class():
    value = np.array([-2.0, 0.0, 0.4, 1.7, 1.0, -0.3, 2.0, 0.0])
    probabilities, found = block(value)
    expected = (probabilities * VALUES).sum(axis=1)
    named = np.array([VALUES[i] for i in probabilities.argmax(axis=1)])
    scores = sentiment.regression_view(expected, value)
    scores |= sentiment.classification_view(named, value)
    assert {name: of["value"] for name, of in found.items()} == pytest.approx(scores)
    low, high = bootstrap.bootstrap_interval(np.abs(expected - value), 8, **DRAWS)
    assert (found["mae"]["low"], found["mae"]["high"]) == pytest.approx((low, high))
    # Two truths are 0, and two more round to it.
    left_out = {name: of["left_out"] for name, of in found.items() if of["left_out"]}
    assert left_out == {"acc2_nonzero": 2, "f1_nonzero": 2, "acc2": 4, "f1": 4}
    assert all(of["num_samples"] == 8 - of["left_out"] for of in found.values())
    for of in found.values():
        assert of["low"] <= of["value"] <= of["high"]


def test_block_majority_by_hand():
    value = np.array([-2.0, 0.0, 0.4, 1.7, 1.0, -0.3, 2.0, 0.0])
    majority = {name: of["majority"] for name, of in block(value)[1].items()}
    # In training class 0 is the commonest; 8 of 20 are positive, 3 negative, 17 not negative.
    assert majority["mae"] == pytest.approx(np.abs(value).mean())
    assert majority["acc7"] == majority["acc5"] == pytest.approx(4 / 8)
    assert majority["corr"] is None
    assert majority["acc2_nonzero"] == pytest.approx(4 / 6)  # always positive
    assert majority["f1_nonzero"] == pytest.approx(2 * 4 / 10)
    assert majority["acc2_has0"] == pytest.approx(4 / 8)  # never positive
    assert majority["acc2_nonneg"] == pytest.approx(6 / 8)
    assert majority["acc2"] == pytest.approx(3 / 4)
    negative = {name: of["majority"] for name, of in block(value, (9, 0, 0, 1, 1))[1].items()}
    assert negative["acc2"] == pytest.approx(1 / 4)
    assert negative["acc2_nonneg"] == pytest.approx(2 / 8)


def test_block_draws_whole_groups():
    value = np.tile(np.array([-2.0, 0.0, 0.4, 1.7]), 4)
    alone, grouped = (block(value, groups=groups)[1] for groups in (None, np.arange(16) // 8))
    assert alone["mae"]["value"] == grouped["mae"]["value"]
    assert alone["mae"]["low"] != grouped["mae"]["low"]


def test_unusable_numbers_are_named():
    with pytest.raises(DataError, match=r"predicted: found 1 values that are NaN.*row 1"):
        sentiment.regression_view(np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(DataError, match="truth: found 2 values that are NaN or infinite"):
        sentiment.classification_view(np.zeros(3), np.array([np.inf, 0.0, np.nan]))
    with pytest.raises(DataError, match="at least one real row"):
        sentiment.mean_absolute_error(np.zeros(2), np.zeros(2), np.zeros(2))
