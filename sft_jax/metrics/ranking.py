"""Ranking metrics: average precision, ROC-AUC and d', of each class, macro-averaged.

A sample may be positive for one class (classification) or for any number (multi-label).

Scores are sorted once, so that a bootstrap draw costs two passes over them instead of a sort.
Letters: `n` rows, `c` classes, `p` classes with a positive sample, `s` positives of all classes.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from scipy.special import ndtri

from sft_jax.metrics.bootstrap import estimate, estimates
from sft_jax.metrics.inputs import check_classes, counted, finite
from sft_jax.types import Array

# In the order of `macro`; `d_prime` follows from the second.
NAMES = ("mAP", "mAUC", "d_prime")


class Ranked(NamedTuple):
    """Samples sorted by descending score for each class that has positives; see `presort`.

    The positives of all classes form one list `[s]`, by class and rank, with their positions in
    cumulative counts.

    Attributes:
        classes: Classes with positives `[p]`.
        order: Samples by descending score `[p, n]`.
        known: Whether the sample is known to be positive or negative, in that order `[p, n]`; None
            if all are.
        positive: Samples by class and rank `[s]`.
        row: Position in `classes` of the class of each positive `[s]`.
        begin: First positive of each class `[p]`.
        above: Position in a flat `[p, n + 1]` cumulative count of the samples that score strictly
            higher `[s]`.
        upto: The same for samples that score as high or higher `[s]`.
        through: Position in an `[s + 1]` cumulative count of the positives that score as high or
            higher in this class, or belong to an earlier class `[s]`.
    """

    classes: np.ndarray
    order: np.ndarray
    known: np.ndarray | None
    positive: np.ndarray
    row: np.ndarray
    begin: np.ndarray
    above: np.ndarray
    upto: np.ndarray
    through: np.ndarray


def presort(
    scores: Float[np.ndarray, "n c"],
    positive: Bool[np.ndarray, "n c"],
    known: Bool[np.ndarray, "n c"] | None = None,
) -> Ranked:
    """Sorts scores for repeated use by `per_class`; every row must be finite.

    Args:
        scores: Score of each class, higher if more likely.
        positive: Classes that each sample belongs to.
        known: Entries that count; all if not given. Positives must be known.
    """
    n, classes = len(scores), np.flatnonzero(positive.any(axis=0))
    class_scores = scores[:, classes].T
    order = np.argsort(-class_scores, axis=1, kind="stable")
    ranked = np.take_along_axis(class_scores, order, axis=1)
    # Equal scores are one threshold, so they share the start and the end of their run.
    new = np.ones((len(classes), n + 1), bool)
    new[:, 1:n] = ranked[:, 1:] != ranked[:, :-1]
    position = np.arange(n + 1)
    start = np.maximum.accumulate(np.where(new[:, :-1], position[:-1], 0), axis=1)
    stop = np.minimum.accumulate(np.where(new[:, 1:], position[1:], n)[:, ::-1], axis=1)[:, ::-1]
    is_positive = np.take_along_axis(positive[:, classes].T, order, axis=1)
    row = np.nonzero(is_positive)[0]
    begin = np.searchsorted(row, np.arange(len(classes)))
    seen = np.cumsum(is_positive, axis=1)
    return Ranked(
        classes=classes,
        order=order,
        known=None if known is None else np.take_along_axis(known[:, classes].T, order, axis=1),
        positive=order[is_positive],
        row=row,
        begin=begin,
        above=row * (n + 1) + start[is_positive],
        upto=row * (n + 1) + stop[is_positive],
        through=begin[row] + seen[row, stop[is_positive] - 1],
    )


def per_class(
    ranked: Ranked, times: Real[np.ndarray, " n"], *, base: Real[np.ndarray, " n"] | None = None
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Average precision and ROC-AUC of each class, where sample `i` counts `times[i]` times.

    Average precision is the mean over the positives of the precision among all samples that score
    as high or higher, without interpolation. ROC-AUC is the share of pairs of a positive and a
    negative in which the positive scores higher; ties count half.

    Args:
        ranked: Presorted samples.
        times: How much each sample counts.
        base: What a sample drawn once counts. Copies of a sample beyond that do not count as
            retrieved together with it in average precision, since a sample drawn twice by a
            bootstrap would look easier to retrieve than it is, a bias of several standard errors
            in small classes. If not given they do, as `sample_weight` does in scikit-learn.

    Returns:
        `[p]` each; NaN for a class without positives, and in ROC-AUC without negatives.
    """
    total = np.zeros((len(ranked.classes), len(times) + 1))
    weights = times[ranked.order]
    np.cumsum(weights if ranked.known is None else weights * ranked.known, axis=1, out=total[:, 1:])
    weight = times[ranked.positive].astype(np.float64)
    seen = np.concatenate([[0.0], np.cumsum(weight)])
    above, upto = total.ravel()[ranked.above], total.ravel()[ranked.upto]
    hits = seen[ranked.through] - seen[ranked.begin][ranked.row]
    spare = 0 if base is None else np.maximum(weight - base[ranked.positive], 0)
    # Samples that do not count are not retrieved; the smallest number keeps 0 / 0 at 0.
    retrieved = np.maximum(upto - spare, np.finfo(np.float64).tiny)
    positives = _sums(weight, ranked.begin)
    precision = _sums(weight * (hits - spare) / retrieved, ranked.begin)
    beaten = _sums(weight * (total[ranked.row, -1] - (above + upto) / 2), ranked.begin)
    # Positives of a class beat each other, and themselves, in half of their pairs.
    pairs = positives * (total[:, -1] - positives)
    with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN of the docstring
        return precision / positives, (beaten - positives**2 / 2) / pairs


def _sums(values: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Sums of consecutive parts that begin at these positions."""
    return np.add.reduceat(values, begin) if begin.size else np.zeros(0)


def macro(
    ranked: Ranked, times: Real[np.ndarray, " n"], *, base: Real[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " 2"]:
    """Means over the classes where they are defined: mAP and mAUC, or NaN."""
    scores = (values[~np.isnan(values)] for values in per_class(ranked, times, base=base))
    return np.array([values.mean() if values.size else np.nan for values in scores])


def one_hot(label: Int[np.ndarray, " n"], num_classes: int) -> Bool[np.ndarray, "n c"]:
    """Entries that are the class of each sample."""
    return np.asarray(label)[:, None] == np.arange(num_classes)


def d_prime(auc: float | None) -> float | None:
    """`sqrt(2) * Phi^-1(auc)`; None if it is infinite (at 0 and 1) or `auc` is None."""
    if auc is None or not 0 < auc < 1:
        return None
    return float(np.sqrt(2) * ndtri(auc))


def ranking_metrics(
    scores: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, Any]:
    """Macro average precision, macro one-vs-rest ROC-AUC, and its d'.

    Args:
        scores: Score of each class, higher if more likely. Logits and their softmax rank samples
            differently, since softmax normalises each row.
        label: True class of each sample; ignored where `weight` is 0.
        weight: How often each row counts, 0 on padding; once if not given.

    Returns:
        `mAP`, `mAUC`, `d_prime` (None if undefined: mAUC of a single class, d' of a mAUC of 0 or
        1), and `absent_classes`, the classes without a sample, which are excluded.

    Raises:
        DataError: A score is not finite, a label is not a class, or no row counts.
    """
    times = counted(weight, len(label))
    scores, label, is_counted = finite("scores", scores, times), np.asarray(label), times > 0
    check_classes("label", label[is_counted], scores.shape[1])
    positive = one_hot(label[is_counted], scores.shape[1])
    ranked = presort(scores[is_counted], positive)
    precision, auc = (None if np.isnan(x) else float(x) for x in macro(ranked, times[is_counted]))
    absent = sorted(set(range(scores.shape[1])) - set(ranked.classes.tolist()))
    return {"mAP": precision, "mAUC": auc, "d_prime": d_prime(auc), "absent_classes": absent}


def ranking_estimates(
    scores: Float[np.ndarray, "n c"],
    label: Int[np.ndarray, " n"],
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
    weight: Real[np.ndarray, " n"] | None = None,
) -> dict[str, dict[str, float | None]]:
    """`{value, low, high}` of each of `NAMES`; every row counts.

    d' increases with mAUC, so the ends of its interval follow from those of mAUC.

    Args:
        scores: See `ranking_metrics`.
        label: True class of each sample.
        groups: See `bootstrap.bootstrap_interval`.
        bootstrap: `seed` and `replicates` of `bootstrap.bootstrap_interval`.
        weight: How much each row counts; once if not given.
    """
    ranked = presort(scores, one_hot(label, scores.shape[1]))
    base = np.ones(len(label)) if weight is None else weight

    def statistic(times: np.ndarray) -> np.ndarray:
        return macro(ranked, times * base, base=base)

    both = estimates(statistic, len(label), groups=groups, **bootstrap)
    ends = (d_prime(both[1][key]) for key in ("value", "low", "high"))
    derived = estimate(*(np.nan if end is None else end for end in ends))
    return dict(zip(NAMES, (*both, derived), strict=True))
