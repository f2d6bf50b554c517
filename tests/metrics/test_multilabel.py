"""Multi-label metrics against scikit-learn and slow loops, with unknown entries and weights."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sft_jax.metrics import multilabel
from sft_jax.metrics.multilabel import NAMES, Scorer
from sft_jax.types import DataError


@st.composite
def splits(draw, unknown=True):
    """Scores with many ties, targets that leave labels out, and how much each row counts."""
    n, c = draw(st.integers(1, 10)), draw(st.integers(1, 4))
    scores = draw(hnp.arrays(np.float64, (n, c), elements=st.integers(0, 4).map(lambda x: x / 4)))
    outcomes = [0.0, 1.0, np.nan] if unknown else [0.0, 1.0]
    target = draw(hnp.arrays(np.float64, (n, c), elements=st.sampled_from(outcomes)))
    weight = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.5, 1.0, 2.0])))
    return scores, target, weight


def named(scorer, times):
    return dict(zip(NAMES, scorer(times), strict=True))


@given(splits(unknown=False))
@settings(max_examples=40)
def test_known_targets_agree_with_scikit_learn(split):
    scores, target, weight = split
    decided, m = scores >= 0.5, sklearn.metrics
    found = named(Scorer(scores, decided, target, weight), np.ones(len(target)))
    more = {"sample_weight": weight, "zero_division": 0.0}
    truth = target.astype(int)
    for average in ("macro", "micro", "weighted", "samples"):
        if truth.shape[1] == 1:  # which scikit-learn takes for one label
            continue
        value = found[f"{average}_f1"]
        if np.isnan(value):  # of no positives, by which it weighs
            assert not truth.any()
            continue
        assert value == pytest.approx(m.f1_score(truth, decided, average=average, **more))
    if truth.shape[1] > 1:
        own = {"sample_weight": weight}
        pairs = {
            "lrap": m.label_ranking_average_precision_score,
            "coverage": m.coverage_error,
            "ranking_loss": m.label_ranking_loss,
        }
        for name, function in pairs.items():
            assert found[name] == pytest.approx(function(truth, scores, **own)), name
        assert found["hamming_loss"] == pytest.approx(m.hamming_loss(truth, decided, **own))
        assert found["exact_match"] == pytest.approx(m.accuracy_score(truth, decided, **own))


@given(splits())
@settings(max_examples=30)
def test_unknown_entries_count_nowhere(split):
    scores, target, weight = split
    unknown = np.isnan(target)
    other = np.where(unknown, 0.25, scores)
    first, second = (
        named(Scorer(x, x >= 0.5, target, weight), np.ones(len(target))) for x in (scores, other)
    )
    assert first == pytest.approx(second, nan_ok=True)


@given(splits())
@settings(max_examples=30)
def test_thresholds_are_the_best_of_all(split):
    probabilities, target, weight = split
    found = multilabel.best_thresholds(probabilities, target, weight)
    for label, threshold in enumerate(found):
        known = ~np.isnan(target[:, label])
        column, truth, mass = (
            x[known] for x in (probabilities[:, label], target[:, label], weight)
        )

        def f1(at, column=column, truth=truth, mass=mass):
            hit = mass @ ((column >= at) & (truth == 1))
            both = mass @ (column >= at) + mass @ (truth == 1)
            return 2 * hit / both if both else 0.0

        if not truth.any():
            assert threshold == 0.5
            continue
        candidates = sorted({*column.tolist(), 0.5})
        best = max(f1(at) for at in candidates)
        tied = [at for at in candidates if f1(at) >= best - 1e-12]
        assert threshold == min(tied, key=lambda at: (abs(at - 0.5), at))


def test_curves_end_at_full_recall_and_agree_with_scikit_learn(rng):
    scores, target = rng.integers(0, 9, 50) / 8, (rng.random(50) < 0.4).astype(float)
    target[7] = np.nan
    known = ~np.isnan(target)
    recall, precision = multilabel.precision_recall(scores, target)
    assert recall[-1] == 1
    expected = sklearn.metrics.precision_recall_curve(target[known], scores[known])
    np.testing.assert_allclose(precision, expected[0][:-1][::-1])
    np.testing.assert_allclose(recall, expected[1][:-1][::-1])


def test_scores_of_a_label_by_hand():
    scores = np.array([[0.9], [0.8], [0.3], [0.1]])
    target = np.array([[1.0], [0.0], [1.0], [np.nan]])
    found = Scorer(scores, scores >= 0.5, target, np.array([1, 1, 2, 5])).per_label()
    assert found["known"] == [4]
    assert found["positives"] == [3]
    assert found["precision"] == [0.5]
    assert found["recall"] == pytest.approx([1 / 3])
    assert found["accuracy"] == [0.25]
    # Precision at the positives: 1 and 3 of 4, the second twice.
    assert found["AP"] == pytest.approx([(1 + 2 * 0.75) / 3])
    # F1 of yes 2 / 5, by 3 of 4; of no 0, by 1 of 4.
    assert found["weighted_f1"] == pytest.approx([0.4 * 3 / 4])


def test_other_targets_than_0_and_1_are_refused():
    with pytest.raises(DataError, match="other than 0 and 1"):
        Scorer(np.zeros((2, 1)), np.zeros((2, 1), bool), np.array([[2.0], [0.0]]))
