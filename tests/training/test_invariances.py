"""What no metric may depend on: order, names of classes, scale of scores, copies, padding."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sft_jax.metrics import bootstrap, calibration, ranking, sentiment
from sft_jax.metrics import classification as metrics

EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)  # with ties, and exact sums


@st.composite
def outcomes(draw, elements=EIGHTHS):
    """Scores with ties, labels, and how often each row counts; some rows do not."""
    n, c = draw(st.integers(2, 12)), draw(st.integers(2, 5))
    scores = draw(hnp.arrays(np.float64, (n, c), elements=elements))
    label = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    times = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2)))
    times[0] = max(times[0], 1)
    return scores, label, times


def softmax(scores):
    return scipy.special.softmax(scores, axis=1)


def measured(scores, label, times, ties=True):
    """Every metric of a row of scores; without `ties`, only those that have no rule for them."""
    probabilities = softmax(scores)
    found = {"loss": metrics.cross_entropy(probabilities, label, times)}
    found |= {
        k: v for k, v in ranking.ranking_metrics(scores, label, times).items() if k[0] in "md"
    }
    if ties:
        confusion = metrics.confusion_matrix(
            label[times > 0], probabilities[times > 0].argmax(axis=1), scores.shape[1]
        )
        found["top1"] = metrics.top_k(probabilities, label, 1, times)
        found["top2"] = metrics.top_k(probabilities, label, 2, times)
        found["macro_f1"] = metrics.macro_f1(confusion)
        found["calibration"] = calibration.reliability(probabilities, label, times).error
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close = None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)
        assert found[name] == close, name


@given(outcomes(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(outcome, random):
    scores, label, times = outcome
    order = list(range(len(label)))
    random.shuffle(order)
    same(measured(scores[order], label[order], times[order]), measured(scores, label, times))


@given(outcomes(), st.randoms(use_true_random=False))
def test_the_names_of_classes_do_not_matter(outcome, random):
    """But for ties between classes, which go to the lowest one."""
    scores, label, times = outcome
    names = list(range(scores.shape[1]))
    random.shuffle(names)
    renamed = np.empty_like(scores)
    renamed[:, names] = scores
    ties = all(len(set(row)) == len(row) for row in scores.tolist())
    found = measured(renamed, np.array(names)[label], times, ties)
    same(found, measured(scores, label, times, ties))


@given(outcomes(), st.integers(2, 3))
def test_copies_of_all_samples_do_not_matter(outcome, copies):
    scores, label, times = outcome
    rows = np.tile(np.arange(len(label)), copies)
    expected = measured(scores, label, times)
    same(measured(scores[rows], label[rows], times[rows]), expected)
    same(measured(scores, label, times * copies), expected)


@given(outcomes(), st.sampled_from([np.nan, np.inf, -np.inf, 1e300]), st.integers(-5, 9))
def test_rows_that_do_not_count_may_hold_anything(outcome, filling, name):
    scores, label, times = outcome
    padded = np.concatenate([softmax(scores), np.full((2, scores.shape[1]), filling)])
    labels, counts = np.concatenate([label, [name, name]]), np.concatenate([times, [0, 0]])
    probabilities = softmax(scores)
    for measure in (
        metrics.cross_entropy,
        lambda p, y, w: metrics.top_k(p, y, 1, w),
        lambda p, y, w: calibration.reliability(p, y, w).error,
        ranking.ranking_metrics,
    ):
        assert measure(padded, labels, counts) == measure(probabilities, label, times)


@given(outcomes(), EIGHTHS, st.sampled_from([0.25, 1.0, 64.0]))
def test_ranks_alone_decide_ranking(outcome, shift, scale):
    """Strictly monotone changes of all scores, linear or not, and every class by its own."""
    scores, label, times = outcome
    expected = ranking.ranking_metrics(scores, label, times)
    own = np.arange(1, scores.shape[1] + 1)
    for changed in (scores * scale + shift, np.exp(scores), scores**3, scores * own - own):
        assert ranking.ranking_metrics(changed, label, times) == expected


@given(outcomes())
def test_scores_turned_round_turn_the_area_round(outcome):
    scores, label, times = outcome
    area = ranking.ranking_metrics(scores, label, times)["mAUC"]
    turned = ranking.ranking_metrics(-scores, label, times)["mAUC"]
    assert (area is None) == (turned is None)
    assert area is None or turned == pytest.approx(1 - area)


@given(outcomes(), st.integers(-1000, 1000))
def test_a_constant_added_to_a_row_of_logits_changes_no_probability(outcome, shift):
    scores, label, times = outcome
    moved = scores + shift * np.arange(1, len(label) + 1)[:, None]
    expected = measured(scores, label, times)
    found = measured(moved, label, times)
    for name in ("loss", "top1", "top2", "macro_f1", "calibration"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12)


@given(outcomes(), st.randoms(use_true_random=False))
def test_votes_follow_their_groups(outcome, random):
    """In any order of the samples; a group is named by its samples."""
    scores, _, _ = outcome
    n = len(scores)
    group = np.array([f"g{random.randrange(3)}" for _ in range(n)])
    label = np.array([int(name[1]) % 2 for name in group])
    order = list(range(n))
    random.shuffle(order)
    a = metrics.vote(softmax(scores), label, group)
    b = metrics.vote(softmax(scores)[order], label[order], group[order])
    by_group = [
        dict(
            zip(
                votes.group,
                zip(votes.probabilities.tolist(), votes.label, strict=True),
                strict=True,
            )
        )
        for votes in (a, b)
    ]
    assert by_group[0].keys() == by_group[1].keys()
    for name, (probabilities, own) in by_group[0].items():
        assert by_group[1][name][1] == own
        np.testing.assert_allclose(by_group[1][name][0], probabilities, rtol=1e-12)


@given(outcomes(), st.randoms(use_true_random=False))
def test_sentiment_in_any_order_and_number_of_copies(outcome, random):
    (predicted, truth), times = outcome[0][:, :2].T, outcome[2]
    order = list(range(len(times)))
    random.shuffle(order)
    expected = sentiment.regression_view(predicted, truth, times)
    same(sentiment.regression_view(predicted[order], truth[order], times[order]), expected)
    same(sentiment.regression_view(predicted, truth, 3 * times), expected)
    classes = sentiment.classification_view(predicted, truth, times)
    same(sentiment.classification_view(predicted[order], truth[order], times[order]), classes)


@given(outcomes(), EIGHTHS, st.sampled_from([0.5, 2.0, 3.0]))
def test_correlation_forgets_place_and_scale(outcome, shift, scale):
    (predicted, truth), times = outcome[0][:, :2].T, outcome[2]
    found = sentiment.correlation(scale * predicted + shift, truth, times)
    expected = sentiment.correlation(predicted, truth, times)
    assert found == pytest.approx(expected, abs=1e-9)
    opposite = sentiment.correlation(-predicted, truth, times)
    assert opposite == pytest.approx(None if expected is None else -expected, abs=1e-9)
    error = sentiment.mean_absolute_error(predicted + shift, truth + shift, times)
    assert error == pytest.approx(sentiment.mean_absolute_error(predicted, truth, times))


@settings(max_examples=10)
@given(st.lists(EIGHTHS, min_size=2, max_size=9), EIGHTHS, st.sampled_from([0.5, 2.0]))
def test_an_interval_moves_with_its_numbers(values, shift, scale):
    values = np.array(values)
    low, high = bootstrap.bootstrap_interval(values, len(values), seed=0, replicates=99)
    moved = bootstrap.bootstrap_interval(scale * values + shift, len(values), seed=0, replicates=99)
    np.testing.assert_allclose(moved, (scale * low + shift, scale * high + shift), atol=1e-12)
    constant = np.full(len(values), shift)
    found = bootstrap.bootstrap_interval(constant, len(values), seed=0, replicates=99)
    np.testing.assert_allclose(found, (shift, shift))
