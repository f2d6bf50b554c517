import json
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sft_jax.metrics import bootstrap, ranking, sentiment
from sft_jax.metrics import classification as metrics
from sft_jax.tasks import classification_scores
from sft_jax.types import DataError

# Four samples of three classes; right at k=1: rows 0 and 3, at k=2 also row 1.
PROBABILITIES = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
LABEL = np.array([0, 1, 0, 2])


@st.composite
def splits(draw, least=2):
    """Probabilities, labels and 0/1 weights with at least `least` real rows."""
    n, c = draw(st.integers(least, 12)), draw(st.integers(2, 5))
    raw = draw(hnp.arrays(np.float64, (n, c), elements=st.floats(0.015625, 1)))
    label = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    weight = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0])))
    weight[:least] = 1
    return raw / raw.sum(axis=1, keepdims=True), label, weight


def test_top_k_by_hand():
    assert metrics.top_k(PROBABILITIES, LABEL, 1) == 0.5
    assert metrics.top_k(PROBABILITIES, LABEL, 2) == 0.75
    assert metrics.top_k(PROBABILITIES, LABEL, 3) == 1.0
    assert metrics.top_k(PROBABILITIES, LABEL, 1, np.array([1, 1, 0, 1])) == pytest.approx(2 / 3)


def test_ties_go_to_the_lowest_class_like_argmax():
    equal = np.full((3, 3), 1 / 3)
    label = np.arange(3)
    assert metrics.top_k(equal, label, 1) == pytest.approx(1 / 3)
    assert metrics.top_k(equal, label, 2) == pytest.approx(2 / 3)
    assert metrics.top_k(equal[:1], label[:1], 1) == 1.0


def test_cross_entropy_by_hand():
    expected = -(math.log(0.5) + math.log(0.35) + math.log(0.1) + math.log(0.6)) / 4
    assert metrics.cross_entropy(PROBABILITIES, LABEL) == pytest.approx(expected, abs=1e-14)
    # Underflow costs log of the smallest normal float32, a finite 87.3 nats.
    certain = np.array([[1.0, 0.0]], np.float32)
    assert metrics.cross_entropy(certain, np.array([1])) == pytest.approx(126 * math.log(2))
    assert metrics.cross_entropy(certain, np.array([0])) == 0.0


def test_sum_is_exact_where_float32_would_drift():
    n = 200_001
    probabilities = np.tile(np.array([[0.7, 0.3]], np.float32), (n, 1))
    expected = -math.log(float(np.float32(0.7)))
    loss = metrics.cross_entropy(probabilities, np.zeros(n, np.int32))
    assert loss == pytest.approx(expected, abs=1e-12)


def test_confusion_and_scores_by_hand():
    label = np.array([0, 0, 0, 1, 1, 2, -1])
    predicted = np.array([0, 0, 1, 1, 0, 0, -1])
    confusion = metrics.confusion_matrix(label, predicted, 4, np.array([1, 1, 1, 1, 1, 1, 0]))
    np.testing.assert_array_equal(
        confusion, [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    )
    scores = metrics.per_class(confusion)
    np.testing.assert_allclose(scores["precision"], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(scores["recall"], [2 / 3, 0.5, 0, 0])
    np.testing.assert_allclose(scores["f1"], [4 / 7, 0.5, 0, 0])
    np.testing.assert_array_equal(scores["support"], [3, 2, 1, 0])
    # Class 3 has no sample and is left out; class 2 is never named and counts as 0.
    assert metrics.macro_f1(confusion) == pytest.approx((4 / 7 + 0.5 + 0) / 3)


def test_a_class_called_but_absent_is_left_out_of_macro_f1():
    confusion = metrics.confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2)
    assert metrics.macro_f1(confusion) == pytest.approx(2 / 3)


@given(splits())
@settings(max_examples=60, deadline=None)
def test_agrees_with_scikit_learn(split):
    probabilities, label, weight = split
    c = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    given_weight = {"sample_weight": weight}
    confusion = metrics.confusion_matrix(label, predicted, c, weight)
    assert metrics.top_k(probabilities, label, 1, weight) == pytest.approx(
        sklearn.metrics.accuracy_score(label, predicted, **given_weight)
    )
    assert metrics.cross_entropy(probabilities, label, weight) == pytest.approx(
        sklearn.metrics.log_loss(label, probabilities, labels=range(c), **given_weight)
    )
    np.testing.assert_array_equal(
        confusion,
        sklearn.metrics.confusion_matrix(label, predicted, labels=range(c), **given_weight),
    )
    scores = sklearn.metrics.precision_recall_fscore_support(
        label, predicted, labels=range(c), zero_division=0, **given_weight
    )
    for name, expected in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        np.testing.assert_allclose(metrics.per_class(confusion)[name], expected, err_msg=name)
    assert metrics.macro_f1(confusion) == pytest.approx(
        sklearn.metrics.f1_score(
            label,
            predicted,
            labels=np.unique(label[weight > 0]),
            average="macro",
            zero_division=0,
            **given_weight,
        )
    )


def test_top_k_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities, label = rng.dirichlet(np.ones(6), 200), rng.integers(0, 6, 200)
    for k in range(1, 6):
        assert metrics.top_k(probabilities, label, k) == pytest.approx(
            sklearn.metrics.top_k_accuracy_score(label, probabilities, k=k, labels=range(6))
        )


@given(splits(), st.data())
@settings(max_examples=40, deadline=None)
def test_padding_changes_nothing_and_order_does_not_matter(split, data):
    probabilities, label, weight = split
    real = weight > 0
    padded = probabilities.copy()
    padded[~real] = data.draw(st.sampled_from([np.nan, 0.0, -1.0, 5.0]))
    label = np.where(real, label, data.draw(st.sampled_from([-1, 0, 999])))
    order = np.array(data.draw(st.permutations(range(len(label)))))
    for measure in (lambda p, y, w: metrics.top_k(p, y, 1, w), metrics.cross_entropy):
        expected = measure(probabilities[real], label[real], None)
        assert measure(padded, label, weight) == pytest.approx(expected, rel=1e-12)
        assert measure(padded[order], label[order], weight[order]) == pytest.approx(expected)


def test_vote_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5], [0.0, 0.0]])
    group = np.array(["b", "a", "b", "b", "a"])
    votes = metrics.vote(
        probabilities, np.array([0, 1, 0, 0, 7]), group, np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    )
    assert votes.group.tolist() == ["a", "b"]
    np.testing.assert_allclose(votes.probabilities, [[0.2, 0.8], [1.7 / 3, 1.3 / 3]])
    assert votes.label.tolist() == [1, 0]


@given(splits())
@settings(max_examples=30, deadline=None)
def test_vote_against_a_slow_loop(split):
    probabilities, label, weight = split
    group = np.array([f"g{y}_{i % 2}" for i, y in enumerate(label)])
    votes = metrics.vote(probabilities, label, group, weight)
    names = sorted(set(group[weight > 0]))
    assert votes.group.tolist() == names
    for name, mean, y in zip(names, votes.probabilities, votes.label, strict=True):
        rows = (group == name) & (weight > 0)
        np.testing.assert_allclose(mean, probabilities[rows].mean(axis=0))
        assert set(label[rows]) == {y}


def test_vote_refuses_a_group_of_two_classes():
    with pytest.raises(DataError, match=r"group 'x': found labels \[0, 2\].*one label per group"):
        metrics.vote(PROBABILITIES, LABEL, np.array(["x", "y", "z", "x"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": PROBABILITIES * 2}, "4 rows that are no distribution.*row 0"),
        ({"probabilities": PROBABILITIES * [[1], [1], [np.nan], [1]]}, "1 rows.*row 2.*NaN"),
        ({"probabilities": np.array([[-0.5, 0.5, 1.0]] * 4)}, "softmax"),
        ({"label": np.array([0, 1, 3, 0])}, "label: found classes 0 to 3, expected 0 to 2"),
        ({"label": np.array([0, -1, 1, 0])}, "label: found classes -1 to 1"),
        ({"k": 0}, "k=0, expected 1 to 3"),
        ({"k": 4}, "k=4, expected 1 to 3"),
        ({"weight": np.zeros(4)}, "at least one real row"),
        ({"weight": np.array([1, -1, 1, 1])}, "finite numbers of at least 0"),
        ({"weight": np.array([1, np.nan, 1, 1])}, "finite numbers of at least 0"),
    ],
)
def test_unusable_input_is_named(change, message):
    arguments = {"probabilities": PROBABILITIES, "label": LABEL, "k": 1, **change}
    with pytest.raises(DataError, match=message):
        metrics.top_k(**arguments)


def test_macro_f1_without_samples_is_an_error():
    with pytest.raises(DataError, match="found no sample"):
        metrics.macro_f1(np.zeros((3, 3), np.int64))


def evaluated(**change):
    arguments = {
        "probabilities": PROBABILITIES,
        "label": LABEL,
        "weight": None,
        "split": "test",
        "step": 40,
        "class_names": ("up", "down", "rest"),
        "train_counts": np.array([5, 6, 2]),
        "replicates": 200,
        **change,
    }
    return classification_scores.evaluate(**arguments)


def test_evaluate_by_hand():
    padded = np.concatenate([PROBABILITIES, np.zeros((2, 3))])
    result = evaluated(
        probabilities=padded,
        label=np.array([*LABEL, 0, -1]),
        weight=np.array([1, 1, 1, 1, 0, 0], np.float32),
        group=np.array(["a", "b", "a", "c", "c", ""]),
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["split"], result["step"], result["num_samples"]) == ("test", 40, 4)
    assert list(result["metrics"]) == ["top1", "loss", "macro_f1", "mAP", "mAUC", "d_prime"]
    assert result["metrics"]["top1"]["value"] == 0.5
    assert result["metrics"]["macro_f1"]["value"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert result["resampled"] == "group"
    # Columns of one score each rank nothing: precision is each class's share, 1/2, 1/4 and 1/4.
    assert result["majority"] == {
        "class": "down",
        "top1": 0.25,
        "macro_f1": pytest.approx(0.4 / 3),
        "mAP": pytest.approx(1 / 3),
        "mAUC": 0.5,
        "d_prime": 0.0,
    }
    assert (result["absent_classes"], result["ranked_by"]) == ([], "probabilities")
    assert result["sentiment"] is None
    assert result["confusion"] == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert result["per_class"][2] == {
        "class": "rest",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    # Group a: mean of rows 0 and 2 is (0.3, 0.25, 0.45), so its vote is wrong; c is right.
    assert result["group"]["num_groups"] == 3
    assert result["group"]["top1"]["value"] == pytest.approx(1 / 3)
    undefined = [name for name, of in result["metrics"].items() if of["low"] is None]
    assert undefined == ["d_prime"]  # some draws of three groups rank perfectly
    estimates = [of for name, of in result["metrics"].items() if name not in undefined]
    for estimate in (*estimates, result["group"]["top1"]):
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_evaluate_intervals_are_those_of_bootstrap_interval():
    # 5 copies of each row: resampling the 4 originals must give wider intervals than the 20 rows.
    many = {"probabilities": np.repeat(PROBABILITIES, 5, axis=0), "label": np.repeat(LABEL, 5)}
    group = np.repeat(np.array(["a", "b", "c", "d"]), 5)
    hits = np.repeat([1.0, 0.0, 0.0, 1.0], 5)
    widths = []
    for groups, drawn in ((group, "group"), (None, "sample")):
        result = evaluated(**many, group=groups)
        top1 = result["metrics"]["top1"]
        expected = bootstrap.bootstrap_interval(hits, 20, 0, groups=groups, replicates=200)
        assert (top1["low"], top1["high"]) == expected
        assert result["resampled"] == drawn
        widths.append(top1["high"] - top1["low"])
    assert widths[0] > widths[1]


@pytest.mark.parametrize(
    "group", [None, np.array(["a", "b", "c", "d"]), np.array(["a", "a", "b", "b"])]
)
def test_no_group_level_without_groups_of_one_class(group):
    assert evaluated(group=group)["group"] is None


def test_one_sample_has_no_interval():
    result = evaluated(probabilities=PROBABILITIES[:1], label=LABEL[:1])
    assert result["metrics"]["top1"] == {"value": 1.0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("classes", "names"),
    [(3, ["top1"]), (4, ["top1", "top3"]), (9, ["top1", "top3"]), (10, ["top1", "top3", "top5"])],
)
def test_which_top_k_are_reported(classes, names):
    result = evaluated(
        probabilities=np.full((2, classes), 1 / classes),
        label=np.array([0, 3 % classes]),
        class_names=[str(i) for i in range(classes)],
        train_counts=np.ones(classes, np.int64),
    )
    assert [name for name in result["metrics"] if name.startswith("top")] == names


def test_evaluate_names_disagreeing_class_counts():
    with pytest.raises(DataError, match="test: found 2 class_names and 3 train_counts, expected 3"):
        evaluated(class_names=("up", "down"))


def test_evaluate_ranks_by_the_logits_where_given():
    logits = np.log(PROBABILITIES) + np.array([[3.0], [0.0], [-2.0], [1.0]])
    given, derived = evaluated(scores=logits), evaluated()
    assert (given["ranked_by"], derived["ranked_by"]) == ("logits", "probabilities")
    for result, scores in ((given, logits), (derived, PROBABILITIES)):
        expected = ranking.ranking_metrics(scores, LABEL)
        assert {name: result["metrics"][name]["value"] for name in ranking.NAMES} == {
            name: expected[name] for name in ranking.NAMES
        }
    assert given["metrics"]["mAUC"] != derived["metrics"]["mAUC"]
    # Everything else is judged by the probabilities.
    for name in ("top1", "loss", "macro_f1"):
        assert given["metrics"][name] == derived["metrics"][name]


def test_evaluate_lists_absent_classes_and_states_what_is_undefined():
    result = evaluated(label=np.array([2, 2, 2, 2]))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["absent_classes"] == ["up", "down"]
    assert result["metrics"]["mAP"]["value"] == 1.0
    for name in ("mAUC", "d_prime"):
        assert result["metrics"][name] == {"value": None, "low": None, "high": None}
        assert result["majority"][name] is None


def test_evaluate_adds_sentiment_of_the_rows_that_count():
    padded = {
        "probabilities": np.concatenate([PROBABILITIES, np.full((1, 3), np.nan)]),
        "label": np.array([*LABEL, -1]),
        "weight": np.array([1.0, 1.0, 1.0, 1.0, 0.0]),
        "class_values": (-1.0, 0.0, 1.0),
        "value": np.array([-0.6, 0.2, -1.0, 1.0, np.nan], np.float32),
    }
    result = evaluated(**padded)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    found = result["sentiment"]
    assert list(found) == [*sentiment.REGRESSION, *sentiment.CLASSIFICATION]
    expected = PROBABILITIES[:, 2] - PROBABILITIES[:, 0]
    truth = padded["value"][:4].astype(np.float64)
    assert found["mae"]["value"] == pytest.approx(np.abs(expected - truth).mean())
    # Named: -1, -1, 1, 1; row 1 is left out since 0.2 rounds to 0, row 2 is wrong.
    assert found["acc2"]["value"] == pytest.approx(2 / 3)
    assert (found["acc2"]["num_samples"], found["acc2"]["left_out"]) == (3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_values": (-1.0, 0.0, 1.0)}, "no value of each sample, expected 3 finite"),
        ({"value": np.zeros(4)}, r"test: found class_values \(\) and a value"),
        ({"class_values": (0.0, 1.0), "value": np.zeros(4)}, "expected 3 finite class_values"),
        ({"class_values": (0.0, 1.0, np.nan), "value": np.zeros(4)}, "expected 3 finite"),
        (
            {"class_values": (-1.0, 0.0, 1.0), "value": np.array([0, np.nan, 1, 0])},
            "value: found 1 values that are NaN or infinite .the first: row 1",
        ),
        ({"scores": PROBABILITIES * np.inf}, "scores: found 12 values that are NaN or infinite"),
    ],
)
def test_evaluate_names_unusable_sentiment_and_scores(change, message):
    with pytest.raises(DataError, match=message):
        evaluated(**change)
