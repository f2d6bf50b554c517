"""Metrics of how each class ranks the samples: average precision, ROC-AUC, d'.

One class against the rest, equal weight for every class that occurs (macro). All of it is counted
from one presorting, so that a bootstrap draw costs two passes over the scores instead of a sort.
Letters: `n` rows, `c` classes, `p` classes that occur among the labels.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.special import ndtri

from sft_jax.metrics.bootstrap import estimate, estimates
from sft_jax.metrics.inputs import check_classes, counted, finite
from sft_jax.types import Array

# In this order `macro` returns them; `d_prime` follows from the second.
NAMES = ("mAP", "mAUC", "d_prime")


class Ranked(NamedTuple):
    """Samples sorted by falling score for each class that occurs; see `presort`.

    A sample is positive for one class, its own. The positives of all classes are listed in one go,
    `[n]`, by class and rank, and what is looked up for them is kept as places in running counts.

    Attributes:
        classes: `[p]` the classes that occur.
        order: `[p, n]` samples by falling score.
        positive: `[n]` samples, by class and rank.
        row: `[n]` place in `classes` of the class of each positive.
        begin: `[p]` the first positive of each class.
        above: `[n]` place in a flat `[p, n + 1]` of how many samples score strictly higher.
        upto: `[n]` likewise for samples that score as high or higher.
        through: `[n]` place in an `[n + 1]` running count of the positives that score as high or
            higher in this class, or that belong to a class before it.
    """

    classes: np.ndarray
    order: np.ndarray
    positive: np.ndarray
    row: np.ndarray
    begin: np.ndarray
    above: np.ndarray
    upto: np.ndarray
    through: np.ndarray


def presort(scores: Float[np.ndarray, "n c"], label: Int[np.ndarray, " n"]) -> Ranked:
    """Sorts once what `per_class` counts on often; every row must count and be finite."""
    n, classes = len(label), np.unique(label)
    own_scores = scores[:, classes].T
    order = np.argsort(-own_scores, axis=1, kind="stable")
    ranked = np.take_along_axis(own_scores, order, axis=1)
    # Equal scores are one threshold: they share where their run starts and where it ends.
    new = np.ones((len(classes), n + 1), bool)
    new[:, 1:n] = ranked[:, 1:] != ranked[:, :-1]
    place = np.arange(n + 1)
    start = np.maximum.accumulate(np.where(new[:, :-1], place[:-1], 0), axis=1)
    stop = np.minimum.accumulate(np.where(new[:, 1:], place[1:], n)[:, ::-1], axis=1)[:, ::-1]
    own = label[order] == classes[:, None]
    row = np.nonzero(own)[0]
    begin = np.searchsorted(row, np.arange(len(classes)))
    seen = np.cumsum(own, axis=1)
    return Ranked(
        classes=classes,
        order=order,
        positive=order[own],
        row=row,
        begin=begin,
        above=row * (n + 1) + start[own],
        upto=row * (n + 1) + stop[own],
        through=begin[row] + seen[row, stop[own] - 1],
    )


def per_class(
    ranked: Ranked, times: Int[np.ndarray, " n"], *, copies: bool = True
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Average precision and ROC-AUC of each class, where sample `i` counts `times[i]` times.

    Average precision is the mean, over the positives, of the precision among all samples that
    score as high or higher (no interpolation); ROC-AUC the share of pairs of a positive and
    another sample in which the positive scores higher, ties counting half.

    Args:
        ranked: the samples, presorted.
        times: how often each sample counts.
        copies: whether the copies of one sample find each other in average precision, as samples
            of equal score do (and as `sample_weight` in scikit-learn has it). A bootstrap says
            False: a sample drawn twice would look easier to find than it is, which lifts every
            draw, by several standard errors where a class has few samples.

    Returns:
        `[p]` each; NaN for a class without positives, and in ROC-AUC for one without negatives.
    """
    total = np.zeros((len(ranked.classes), len(times) + 1))
    np.cumsum(times[ranked.order], axis=1, out=total[:, 1:])
    weight = times[ranked.positive].astype(np.float64)
    seen = np.concatenate([[0.0], np.cumsum(weight)])
    above, upto = total.ravel()[ranked.above], total.ravel()[ranked.upto]
    hits = seen[ranked.through] - seen[ranked.begin][ranked.row]
    everything = times.sum()
    spare = 0 if copies else np.maximum(weight - 1, 0)
    positives = np.add.reduceat(weight, ranked.begin)
    precision = np.add.reduceat(weight * (hits - spare) / np.maximum(upto - spare, 1), ranked.begin)
    beaten = np.add.reduceat(weight * (everything - (above + upto) / 2), ranked.begin)
    # A class's positives beat each other in half of their pairs, themselves included.
    pairs = positives * (everything - positives)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is promised
        return precision / positives, (beaten - positives**2 / 2) / pairs


def macro(
    ranked: Ranked, times: Int[np.ndarray, " n"], *, copies: bool = True
) -> Float[np.ndarray, " 2"]:
    """Means of both over the classes where they are defined: mAP, mAUC; NaN where there is none."""
    scores = (values[~np.isnan(values)] for values in per_class(ranked, times, copies=copies))
    return np.array([values.mean() if values.size else np.nan for values in scores])


def d_prime(auc: float | None) -> float | None:
    """`sqrt(2) * Phi^-1(auc)`; None where that is infinite (0 and 1) or `auc` is None."""
    if auc is None or not 0 < auc < 1:
        return None
    return float(np.sqrt(2) * ndtri(auc))


def ranking_metrics(
    scores: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> dict[str, Any]:
    """Macro average precision, macro one-vs-rest ROC-AUC, and the d' that belongs to it.

    Args:
        scores: of each class, larger is likelier. Logits and their softmax give different ranks:
            a softmax divides each row by another number.
        label: True class of each sample; ignored where `weight` is 0.
        weight: How often each row counts, 0 on padding; once if not given.

    Returns:
        `mAP`, `mAUC`, `d_prime` (None where undefined: mAUC of one class alone, d' of a mAUC of 0
        or 1), and `absent_classes`, the classes without a sample, which are left out.

    Raises:
        DataError: a score is not finite, a label is not a class, or no row counts.
    """
    times = counted(weight, len(label))
    scores, label, kept = finite("scores", scores, times), np.asarray(label), times > 0
    check_classes("label", label[kept], scores.shape[1])
    ranked = presort(scores[kept], label[kept])
    precision, auc = (None if np.isnan(x) else float(x) for x in macro(ranked, times[kept]))
    absent = sorted(set(range(scores.shape[1])) - set(ranked.classes.tolist()))
    return {"mAP": precision, "mAUC": auc, "d_prime": d_prime(auc), "absent_classes": absent}


def ranking_estimates(
    scores: Float[np.ndarray, "n c"],
    label: Int[np.ndarray, " n"],
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, dict[str, float | None]]:
    """`{value, low, high}` of each of `NAMES`; every row counts.

    d' grows with mAUC, so the ends of its interval are those of mAUC, put into its formula.

    Args:
        scores: see `ranking_metrics`.
        label: True class of each sample.
        groups: See `bootstrap.bootstrap_interval`.
        bootstrap: `seed` and `replicates` of `bootstrap.bootstrap_interval`.
    """
    ranked = presort(scores, label)

    def statistic(times: np.ndarray) -> np.ndarray:
        return macro(ranked, times, copies=False)

    both = estimates(statistic, len(label), groups=groups, **bootstrap)
    ends = (d_prime(both[1][key]) for key in ("value", "low", "high"))
    derived = estimate(*(np.nan if end is None else end for end in ends))
    return dict(zip(NAMES, (*both, derived), strict=True))
