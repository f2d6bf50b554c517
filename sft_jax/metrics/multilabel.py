"""Exact metrics of multi-label classification over a split, in float64.

An unknown entry of the target counts nowhere: not for its label, nor for its sample, nor among all
entries. `weight` is how much a row counts. Letters: `n` rows, `c` labels.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real

from sft_jax.metrics import ranking
from sft_jax.metrics.inputs import counted, finite
from sft_jax.types import Array, DataError

# Metrics of the decisions, of the order of labels within a sample, and of the order of samples.
NAMES = (
    *("macro_f1", "micro_f1", "weighted_f1", "samples_f1", "hamming_loss", "exact_match"),
    *("lrap", "coverage", "ranking_loss", "loss"),
    *("mAP", "mAUC", "d_prime"),
)
PER_LABEL = ("AP", "AUC", "precision", "recall", "f1", "accuracy", "weighted_f1")


class Scorer:
    """Scores of one split, for repeated use with other weights, as a bootstrap does."""

    def __init__(
        self,
        scores: Float[Array, "n c"],
        decided: Bool[Array, "n c"],
        target: Float[Array, "n c"],
        weight: Real[Array, " n"] | None = None,
        losses: Float[Array, " n"] | None = None,
    ):
        """Checks the inputs, sorts the scores, and scores every sample.

        Args:
            scores: Score of each label, higher if more likely.
            decided: Labels that the model assigns.
            target: 1, 0, or NaN where unknown.
            weight: How much each row counts, 0 on padding; once if not given.
            losses: Loss of each row, summed over its known entries; `loss` is NaN if not given.

        Raises:
            DataError: A score that counts is not finite, or a target is not 0, 1 or NaN.
        """
        self.weight = counted(weight, len(target))
        target = np.asarray(target, np.float64)
        known = ~np.isnan(target) & (self.weight > 0)[:, None]
        if not np.isin(target[known], (0, 1)).all():
            raise DataError(
                "target: found numbers other than 0 and 1, expected 0, 1, or NaN where unknown; "
                "correct the labels"
            )
        scores = finite("scores", scores, self.weight)
        self._known, self._true = known, known & (target == 1)
        self._decided = known & np.asarray(decided, bool)
        right = known & (self._true == self._decided)
        self._cells = {
            "known": known.astype(np.float64),
            "true": self._true.astype(np.float64),
            "decided": self._decided.astype(np.float64),
            "hit": (self._true & self._decided).astype(np.float64),
            "right": right.astype(np.float64),
        }
        self._losses = np.full(len(target), np.nan) if losses is None else losses
        self._ranked = ranking.presort(scores, self._true, known)
        self._samples = {
            "samples_f1": _f1(*(self._cells[k].sum(axis=1) for k in ("hit", "true", "decided"))),
            "exact_match": (right | ~known).all(axis=1).astype(np.float64),
            **_order_within_samples(scores, self._true, known),
        }
        self._scored = known.any(axis=1).astype(np.float64)

    def __call__(self, times: Real[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
        """Every metric of `NAMES` if each row is drawn `times` times; NaN where undefined."""
        weight = times * self.weight
        count = {name: weight @ cells for name, cells in self._cells.items()}
        entries, samples = count["known"].sum(), weight @ self._scored
        f1 = _f1(count["hit"], count["true"], count["decided"])
        with np.errstate(invalid="ignore"):  # 0 / 0: no known entry, or no positive one
            values = {
                "macro_f1": f1.mean(),
                "micro_f1": _f1(*(count[name].sum() for name in ("hit", "true", "decided"))),
                "weighted_f1": f1 @ count["true"] / count["true"].sum(),
                "hamming_loss": 1 - count["right"].sum() / entries,
                "loss": weight @ self._losses / entries,
            }
            for name, scores in self._samples.items():
                values[name] = weight @ (scores * self._scored) / samples
        base = None if (times == 1).all() else self.weight
        values["mAP"], values["mAUC"] = ranking.macro(self._ranked, weight, base=base)
        auc = values["mAUC"]
        d_prime = ranking.d_prime(None if np.isnan(auc) else float(auc))
        values["d_prime"] = np.nan if d_prime is None else d_prime
        return np.array([values[name] for name in NAMES], np.float64)

    def per_label(self) -> dict[str, Float[np.ndarray, " c"]]:
        """Metrics of `PER_LABEL` for each label, with `known` and `positives` (summed weights).

        `weighted_f1` averages the F1 of both answers by how often each is true, as is usual for
        IEMOCAP's emotions. Undefined values are NaN.
        """
        count = {name: self.weight @ cells for name, cells in self._cells.items()}
        precision, auc = np.full((2, self._known.shape[1]), np.nan)
        found = ranking.per_class(self._ranked, self.weight)
        precision[self._ranked.classes], auc[self._ranked.classes] = found
        f1 = _f1(count["hit"], count["true"], count["decided"])
        negatives = count["known"] - count["true"]
        rejected = count["known"] - count["decided"]
        f1_negative = _f1(count["right"] - count["hit"], negatives, rejected)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "AP": precision,
                "AUC": auc,
                "precision": np.where(count["decided"] > 0, count["hit"] / count["decided"], 0),
                "recall": np.where(count["true"] > 0, count["hit"] / count["true"], 0),
                "f1": f1,
                "accuracy": count["right"] / count["known"],
                "weighted_f1": (f1 * count["true"] + f1_negative * negatives) / count["known"],
                "known": count["known"],
                "positives": count["true"],
            }


def precision_recall(
    scores: Float[Array, " n"], target: Float[Array, " n"]
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Recall and precision of one label at every threshold, by rising recall.

    Args:
        scores: Score of each sample, higher if more likely.
        target: 1, 0, or NaN where unknown; at least one is 1.
    """
    known = ~np.isnan(target)
    scores, true = np.asarray(scores)[known], target[known] == 1
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    hits = np.cumsum(true[order])[last]
    return hits / true.sum(), hits / (np.flatnonzero(last) + 1)


def best_thresholds(
    probabilities: Float[Array, "n c"],
    target: Float[Array, "n c"],
    weight: Real[Array, " n"] | None = None,
) -> Float[np.ndarray, " c"]:
    """Threshold of each label with the best F1; ties go to the one nearest 0.5.

    A label is assigned if its probability is at least the threshold. Candidates are the
    probabilities that occur, and 0.5; a label without positives keeps 0.5.
    """
    times = counted(weight, len(target))
    target = np.asarray(target, np.float64)
    chosen = np.full(target.shape[1], 0.5)
    for label, (column, truth) in enumerate(
        zip(np.asarray(probabilities).T, target.T, strict=True)
    ):
        known = ~np.isnan(truth) & (times > 0)
        column, mass, true = column[known].astype(np.float64), times[known], truth[known] == 1
        if not true.any():
            continue
        candidates = np.unique(np.append(column, 0.5))
        order = np.argsort(column)
        begin = np.searchsorted(column[order], candidates)
        above = np.append(np.cumsum(mass[order][::-1])[::-1], 0)[begin]
        hits = np.append(np.cumsum((mass * true)[order][::-1])[::-1], 0)[begin]
        f1 = _f1(hits, mass @ true, above)
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        chosen[label] = candidates[best[np.argmin(np.abs(candidates[best] - 0.5))]]
    return chosen


def _f1(hit: Any, true: Any, decided: Any) -> Any:
    """F1 from counts; 0 without true or decided positives."""
    both = np.asarray(true + decided, np.float64)
    return 2 * hit / np.where(both > 0, both, 1)


def _order_within_samples(
    scores: np.ndarray, true: np.ndarray, known: np.ndarray
) -> dict[str, np.ndarray]:
    """`lrap`, `coverage` and `ranking_loss` of every sample `[n]`.

    A sample without positives has 1, 0 and 0.
    """
    result = {"lrap": np.ones(len(scores)), "coverage": np.zeros(len(scores))}
    result["ranking_loss"] = np.zeros(len(scores))
    for row in np.flatnonzero(true.any(axis=1)):
        values, positive = scores[row][known[row]], true[row][known[row]]
        among_all, among_positive = np.sort(values), np.sort(values[positive])
        # Labels that score at least as high as each positive one.
        rank = len(values) - np.searchsorted(among_all, among_positive)
        hits = len(among_positive) - np.searchsorted(among_positive, among_positive)
        result["lrap"][row] = (hits / rank).mean()
        result["coverage"][row] = rank.max()
        negatives = values[~positive]
        if negatives.size:
            lower = np.searchsorted(among_positive, negatives, side="right")
            result["ranking_loss"][row] = lower.sum() / (len(among_positive) * len(negatives))
    return result
