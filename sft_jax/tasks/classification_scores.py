"""Scores of a classifier on a split, with baseline and intervals.

Letters: `n` samples, `c` classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from sft_jax.metrics.bootstrap import bootstrap_interval, estimate
from sft_jax.metrics.classification import (
    confusion_matrix,
    per_class,
    top_k_hits,
    vote,
)
from sft_jax.metrics.inputs import distributions, finite
from sft_jax.metrics.ranking import NAMES as RANKING
from sft_jax.metrics.ranking import ranking_estimates, ranking_metrics
from sft_jax.metrics.sentiment import sentiment_block
from sft_jax.tasks.classification_metrics import Statistic, statistics
from sft_jax.types import Array, DataError


def evaluate(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
    *,
    split: str,
    step: int,
    class_names: Sequence[str],
    train_counts: Int[Array, " c"],
    group: Shaped[np.ndarray, " n"] | None = None,
    scores: Float[Array, "n c"] | None = None,
    class_values: Sequence[float] = (),
    value: Float[Array, " n"] | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Every metric of a split: the content of `evaluation_<split>.json`.

    Undefined values are None. The 95 % intervals resample groups
    if there are any; with fewer than two, the ends are None.

    Args:
        probabilities: Class probabilities of each sample.
        label: True class of each sample.
        weight: How much each row counts, 0 on padding; once if not given.
        split: Name of the split.
        step: Optimizer steps that the model has taken.
        class_names: Name of each class.
        train_counts: Samples of each class in the training split, for the majority baseline.
        group: Group of each sample, such as its recording.
        scores: Logits, by which mAP and mAUC rank samples; the probabilities by default.
        class_values: Sentiment of each class; together with `value`, adds `sentiment`.
        value: True sentiment of each sample, not rounded.
        seed: Seed of the bootstrap.
        replicates: Number of bootstrap replicates.

    Raises:
        DataError: The numbers of names and classes differ, or the arrays are invalid.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    _check_names(split, class_names, train_counts, probabilities.shape[1])
    value = _sentiment_of(split, class_values, value, times, probabilities.shape[1])
    ranking = probabilities if scores is None else finite("scores", scores, times)
    real = times > 0
    probabilities, label, ranking, times = (x[real] for x in (probabilities, label, ranking, times))
    draws: dict[str, Any] = {
        "weight": times,
        "groups": None if group is None else group[real],
        "bootstrap": {"seed": seed, "replicates": replicates},
    }
    return {
        "split": split,
        "step": step,
        "num_samples": len(label),
        "metrics": {
            name: _estimate(statistic, **draws)
            for name, statistic in statistics(probabilities, label).items()
        }
        | ranking_estimates(ranking, label, **draws),
        "ranked_by": "probabilities" if scores is None else "logits",
        "resampled": "sample" if group is None else "group",
        "majority": _majority(class_names, train_counts, label, times),
        **_class_level(probabilities, label, class_names),
        "group": _group_level(probabilities, label, **draws),
        "sentiment": sentiment_block(probabilities, value, class_values, train_counts, **draws),
    }


def _class_level(
    probabilities: np.ndarray, label: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Scores of each class, the confusion matrix, and the classes without a sample."""
    confusion = confusion_matrix(label, probabilities.argmax(axis=1), len(class_names))
    scores = per_class(confusion)
    return {
        "per_class": [
            {"class": name, **{key: values[i].item() for key, values in scores.items()}}
            for i, name in enumerate(class_names)
        ],
        "absent_classes": [
            name for name, n in zip(class_names, scores["support"], strict=True) if not n
        ],
        "confusion": confusion.tolist(),
    }


def _majority(
    class_names: Sequence[str], train_counts: Array, label: np.ndarray, weight: np.ndarray
) -> dict[str, Any]:
    """Each metric of ranking classes by their frequency in the training split.

    There is no loss, since a ranking has no probabilities.
    """
    frequency = np.asarray(train_counts, np.float64) / np.sum(train_counts)
    constant = np.broadcast_to(frequency, (len(label), len(class_names)))
    scores = {
        name: _value(statistic, weight)
        for name, statistic in statistics(constant, label).items()
        if name != "loss"
    }
    ranking = ranking_metrics(constant, label, weight)
    return {
        "class": class_names[int(np.argmax(train_counts))],
        **scores,
        **{name: ranking[name] for name in RANKING},
    }


def _group_level(
    probabilities: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, Any] | None:
    """Scores of groups by `vote`; None without groups, for single samples, and mixed classes."""
    if groups is None:
        return None
    members: dict[str, set[int]] = {}
    for name, cls in zip(groups.tolist(), label.tolist(), strict=True):
        members.setdefault(name, set()).add(cls)
    if len(members) == len(label) or max(map(len, members.values())) > 1:
        return None
    votes = vote(probabilities, label, groups, weight)
    hits = top_k_hits(votes.probabilities, votes.label, 1)
    return {
        "num_groups": len(hits),
        "top1": _estimate(hits, np.ones(len(hits), np.int64), None, bootstrap),
    }


def _value(statistic: Statistic, weight: np.ndarray) -> float:
    """A statistic of `classification_metrics.statistics`, from how much each sample counts."""
    if callable(statistic):
        return float(statistic(weight))
    return float(statistic.mean() if np.ptp(weight) == 0 else np.average(statistic, weights=weight))


def _estimate(
    statistic: Statistic,
    weight: np.ndarray,
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, float | None]:
    n, low, high = len(weight), np.nan, np.nan
    if (n if groups is None else len(np.unique(groups))) >= 2:
        alike = not callable(statistic) and np.ptp(weight) == 0
        drawn = statistic if alike else lambda times: _value(statistic, times * weight)
        low, high = bootstrap_interval(drawn, n, groups=groups, **bootstrap)
    return estimate(_value(statistic, weight), low, high)


def _check_names(split: str, names: Sequence[str], train_counts: Array, num_classes: int):
    if not len(names) == len(train_counts) == num_classes:
        raise DataError(
            f"{split}: found {len(names)} class_names and {len(train_counts)} train_counts, "
            f"expected {num_classes} of each, one a class; take both from the prepared data"
        )


def _sentiment_of(
    split: str,
    class_values: Sequence[float],
    value: Array | None,
    times: np.ndarray,
    num_classes: int,
) -> np.ndarray | None:
    """The true sentiment of each sample that counts, or None where the data have none."""
    if not len(class_values) and value is None:
        return None
    if value is None or len(class_values) != num_classes or not np.isfinite(class_values).all():
        raise DataError(
            f"{split}: found class_values {tuple(class_values)} and "
            f"{'no value' if value is None else 'a value'} of each sample, expected {num_classes} "
            "finite class_values, one a class, and a value; take both from the prepared data, or "
            "leave both out where classes are no steps of sentiment"
        )
    return finite("value", value, times)[times > 0]
