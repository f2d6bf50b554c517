import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from sft_jax.metrics import bootstrap, ranking
from sft_jax.metrics.ranking import one_hot
from sft_jax.types import DataError


@st.composite
def ranked_splits(draw):
    """Scores with many ties, labels that leave classes out, and how often each row counts."""
    n, c = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    scores = draw(hnp.arrays(np.float64, (n, c), elements=st.integers(-2, 2).map(float)))
    label = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    times = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 3)))
    times[0] = max(times[0], 1)
    return scores, label, times


def by_scikit_learn(scores, label, times):
    """mAP and mAUC one class at a time, and the classes that were left out."""
    precisions, areas, absent = [], [], []
    for cls in range(scores.shape[1]):
        own = label == cls
        if not times[own].any():
            absent.append(cls)
            continue
        column = scores[:, cls]
        precisions.append(sklearn.metrics.average_precision_score(own, column, sample_weight=times))
        if times[~own].any():
            areas.append(sklearn.metrics.roc_auc_score(own, column, sample_weight=times))
    return np.mean(precisions), np.mean(areas) if areas else None, absent


@given(ranked_splits())
@settings(max_examples=200)
def test_agrees_with_scikit_learn(split):
    scores, label, times = split
    precision, auc, absent = by_scikit_learn(scores, label, times)
    result = ranking.ranking_metrics(scores, label, times)
    assert result["mAP"] == pytest.approx(precision, abs=1e-12)
    assert result["absent_classes"] == absent
    if auc is None:
        assert result["mAUC"] is None
    else:
        assert result["mAUC"] == pytest.approx(auc, abs=1e-12)


@given(ranked_splits())
@settings(max_examples=100)
def test_a_count_is_as_many_copies_of_the_row(split):
    # What a bootstrap relies on: classes that a draw leaves without a sample included.
    scores, label, times = split
    ranked = ranking.presort(scores, one_hot(label, scores.shape[1]))
    copied = ranking.presort(
        np.repeat(scores, times, axis=0), one_hot(np.repeat(label, times), scores.shape[1])
    )
    np.testing.assert_allclose(
        ranking.macro(ranked, times), ranking.macro(copied, np.ones(times.sum(), int)), rtol=1e-12
    )


def slow_precision(scores, label, times, cls):
    """Every drawn positive judged as if it had been drawn once."""
    weighted = []
    for i in np.flatnonzero((label == cls) & (times > 0)):
        counts = times.copy()
        counts[i] = 1
        ahead = counts * (scores[:, cls] >= scores[i, cls])
        weighted.append((times[i], ahead[label == cls].sum() / ahead.sum()))
    return sum(w * p for w, p in weighted) / sum(w for w, _ in weighted) if weighted else np.nan


@given(ranked_splits())
def test_without_copies_each_drawn_positive_counts_once_for_itself(split):
    scores, label, times = split
    ranked = ranking.presort(scores, one_hot(label, scores.shape[1]))
    found, _ = ranking.per_class(ranked, times, base=np.ones(len(times)))
    expected = [slow_precision(scores, label, times, cls) for cls in ranked.classes]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    once = np.ones_like(times)
    np.testing.assert_array_equal(
        ranking.per_class(ranked, once, base=once), ranking.per_class(ranked, once)
    )


def test_by_hand():
    # Class 0 ranks rows 0, 2, 1 (row 0 positive), class 1 ranks 0, 1, 2 (rows 1 and 2 positive).
    scores = np.array([[3.0, 3.0, 0.0], [1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [np.nan] * 3])
    label, weight = np.array([0, 1, 1, -1]), np.array([1, 1, 1, 0])
    result = ranking.ranking_metrics(scores, label, weight)
    assert result == {
        "mAP": pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2),
        "mAUC": pytest.approx((1 + 0) / 2),
        "d_prime": pytest.approx(0, abs=1e-12),
        "absent_classes": [2],
    }


def test_a_constant_score_ranks_nothing():
    result = ranking.ranking_metrics(np.zeros((8, 2)), np.array([0] * 6 + [1] * 2))
    assert result == {"mAP": 0.5, "mAUC": 0.5, "d_prime": 0.0, "absent_classes": []}


def test_undefined_is_none():
    alone = ranking.ranking_metrics(np.array([[0.3, 0.7]] * 2), np.array([1, 1]))
    assert alone == {"mAP": 1.0, "mAUC": None, "d_prime": None, "absent_classes": [0]}
    perfect = ranking.ranking_metrics(np.eye(2), np.array([0, 1]))
    assert (perfect["mAUC"], perfect["d_prime"]) == (1.0, None)
    wrong = ranking.ranking_metrics(1 - np.eye(2), np.array([0, 1]))
    assert (wrong["mAUC"], wrong["d_prime"]) == (0.0, None)


def test_d_prime_is_the_distance_of_two_unit_normals_with_that_auc():
    for distance in (-1.5, 0.25, 3.0):
        auc = norm.cdf(distance / math.sqrt(2))
        assert ranking.d_prime(float(auc)) == pytest.approx(distance)
    assert ranking.d_prime(None) is None


def test_softmax_and_logits_rank_differently():
    # Why `ranked_by` is stated: a softmax divides each row by another number.
    logits = np.array([[2.0, 4.0], [1.0, 0.0]])
    label = np.array([0, 1])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert ranking.ranking_metrics(logits, label)["mAUC"] == 0.5
    assert ranking.ranking_metrics(probabilities, label)["mAUC"] == 0.0


def hard_split(n=300, c=60):
    rng = np.random.default_rng(2)
    label = rng.integers(0, c, n)
    scores = rng.normal(size=(n, c))
    scores[np.arange(n), label] += 1.5
    return scores, label


def test_interval_holds_the_value_where_classes_are_small():
    # Five samples a class: where copies find each other, the draws lie far above the value.
    scores, label = hard_split()
    result = ranking.ranking_estimates(scores, label, None, {"seed": 0, "replicates": 200})
    for name in ranking.NAMES:
        assert result[name]["low"] < result[name]["value"] < result[name]["high"], name
    ranked = ranking.presort(scores, one_hot(label, scores.shape[1]))
    shift = {}
    for copies, base in ((True, None), (False, np.ones(len(label)))):
        draws = bootstrap.bootstrap_draws(
            lambda times, base=base: ranking.macro(ranked, times, base=base)[0],
            n=len(label),
            seed=0,
            replicates=200,
        )
        shift[copies] = abs(draws.mean() - result["mAP"]["value"]) / draws.std()
    assert shift[True] > 1.5
    assert shift[False] < 0.5


def test_estimates_are_the_metrics_and_d_prime_follows_auc():
    scores, label = hard_split(60, 4)
    draws = {"seed": 3, "replicates": 100}
    result = ranking.ranking_estimates(scores, label, None, draws)
    plain = ranking.ranking_metrics(scores, label)
    assert {name: of["value"] for name, of in result.items()} == {
        name: plain[name] for name in ranking.NAMES
    }
    ranked = ranking.presort(scores, one_hot(label, scores.shape[1]))
    auc = bootstrap.bootstrap_interval(lambda t: ranking.macro(ranked, t)[1], 60, **draws)
    assert (result["mAUC"]["low"], result["mAUC"]["high"]) == auc
    ends = (result["d_prime"]["low"], result["d_prime"]["high"])
    assert ends == tuple(map(ranking.d_prime, auc))
    grouped = ranking.ranking_estimates(scores, label, np.arange(60) // 20, draws)
    assert grouped["mAUC"]["value"] == result["mAUC"]["value"]
    assert grouped["mAUC"]["low"] != result["mAUC"]["low"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([[0.0, np.nan], [1.0, 0.0]])}, "scores: found 1 values.*row 0"),
        ({"scores": np.array([[0.0, 1.0], [np.inf, 0.0]])}, "scores: found 1 values.*row 1"),
        ({"label": np.array([0, 2])}, "label: found classes 0 to 2, expected 0 to 1"),
        ({"weight": np.zeros(2)}, "at least one real row"),
    ],
)
def test_unusable_input_is_named(change, message):
    arguments = {"scores": np.eye(2), "label": np.array([0, 1]), **change}
    with pytest.raises(DataError, match=message):
        ranking.ranking_metrics(**arguments)
