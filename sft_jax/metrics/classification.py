"""Exact metrics over a whole split, computed on the host in float64.

They are counted over samples, never averaged over batches, so a ragged last batch cannot bias them.
`weight` says how often a row counts: 0 on rows that pad a batch, 1 on real ones. Letters: `n` rows,
`c` classes, `g` groups. Fractions are between 0 and 1; cross-entropy is in nats.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from sft_jax.metrics.inputs import check_classes, counted, distributions
from sft_jax.types import Array, DataError

# The smallest normal float32: a probability that underflowed costs 87.3 nats, not infinity.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


class Votes(NamedTuple):
    """Samples of a group taken together: names `[g]`, mean probabilities `[g, c]`, labels `[g]`."""

    group: np.ndarray
    probabilities: np.ndarray
    label: np.ndarray


def top_k(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    k: int,
    weight: Real[Array, " n"] | None = None,
) -> float:
    """Fraction of samples whose class is among the `k` most probable ones.

    Equal probabilities are ranked by class, lowest first, so that `k=1` agrees with `argmax`.

    Args:
        probabilities: class probabilities of each sample.
        label: true class of each sample; anything where `weight` is 0.
        k: classes that may be named.
        weight: how often each row counts, 0 on padding; every row once where left out.

    Raises:
        DataError: `k` is not in 1 to `c`, a row is not a distribution, a label is not a class,
            or no row counts.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    return float(times @ top_k_hits(probabilities, label, k) / times.sum())


def cross_entropy(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> float:
    """Mean of `-log p[label]` in nats; `p` is at least `SMALLEST_PROBABILITY`.

    Arguments and errors are those of `top_k`.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    return float(times @ sample_cross_entropy(probabilities, label) / times.sum())


def confusion_matrix(
    label: Int[Array, " n"],
    predicted: Int[Array, " n"],
    num_classes: int,
    weight: Real[Array, " n"] | None = None,
) -> Int[np.ndarray, "c c"]:
    """Counts of samples: row = true class, column = predicted class.

    Raises:
        DataError: a class that counts is not in 0 to `num_classes - 1`.
    """
    times = counted(weight, len(label))
    kept = times > 0
    label, predicted = np.asarray(label)[kept], np.asarray(predicted)[kept]
    for what, classes in (("label", label), ("predicted", predicted)):
        check_classes(what, classes, num_classes)
    cells = label.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(cells, weights=times[kept], minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def per_class(confusion: Int[Array, "c c"]) -> dict[str, np.ndarray]:
    """Precision, recall, F1 (fractions) and support (samples) of each class, `[c]` each.

    A class that is never predicted has precision 0; one that never occurs has recall 0 and support
    0, by which it can be told apart.
    """
    confusion = np.asarray(confusion)
    right = np.diagonal(confusion).astype(np.float64)
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _ratio(right, called),
        "recall": _ratio(right, support),
        "f1": _ratio(2 * right, support + called),
        "support": support,
    }


def macro_f1(confusion: Int[Array, "c c"]) -> float:
    """Mean F1 over the classes that occur among the labels; the others are left out."""
    scores = per_class(confusion)
    occurs = scores["support"] > 0
    if not occurs.any():
        raise DataError("confusion: found no sample, expected at least one; check the weights")
    return float(scores["f1"][occurs].mean())


def majority_baseline(
    train_counts: Int[Array, " c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> tuple[int, float]:
    """What always naming the most frequent class of the training split reaches on `label`.

    Args:
        train_counts: samples of each class in the training split; ties go to the lowest class.
        label: true classes of the split that is judged.
        weight: how often each row counts, 0 on padding.

    Returns:
        That class, and its top-1 as a fraction.
    """
    times = counted(weight, len(label))
    majority = int(np.argmax(np.asarray(train_counts)))
    return majority, float(times @ (np.asarray(label) == majority) / times.sum())


def vote(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    group: Shaped[np.ndarray, " n"],
    weight: Real[Array, " n"] | None = None,
) -> Votes:
    """Joins the samples of each group (the windows of a recording) by their mean probability.

    Args:
        probabilities: class probabilities of each sample.
        label: true class of each sample, the same within a group.
        group: name of each sample's group.
        weight: how often each row counts, 0 on padding.

    Returns:
        One row a group, in order of the names.

    Raises:
        DataError: samples of one group have different labels.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    kept = times > 0
    probabilities, label, times = probabilities[kept], label[kept], times[kept]
    names, first, member = np.unique(group[kept], return_index=True, return_inverse=True)
    odd = np.flatnonzero(label != label[first][member])
    if odd.size:
        name = names[member[odd[0]]]
        found = sorted(set(label[member == member[odd[0]]].tolist()))
        raise DataError(
            f"group {str(name)!r}: found labels {found}, expected one label a group; vote over "
            "groups that lie within one class, such as recordings"
        )
    summed = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(summed, member, probabilities * times[:, None])
    return Votes(names, summed / np.bincount(member, weights=times)[:, None], label[first])


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Class probabilities in float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def top_k_hits(probabilities: np.ndarray, label: np.ndarray, k: int) -> np.ndarray:
    """Per sample, 1.0 where the true class is among the `k` most probable ones, else 0.0."""
    num_classes = probabilities.shape[1]
    if not 1 <= k <= num_classes:
        raise DataError(f"top_k: found k={k}, expected 1 to {num_classes}, the number of classes")
    truth = np.clip(label, 0, num_classes - 1)[:, None]  # rows that do not count hold any label
    own = np.take_along_axis(probabilities, truth, axis=1)
    ahead = (probabilities > own) | ((probabilities == own) & (np.arange(num_classes) < truth))
    return (ahead.sum(axis=1) < k).astype(np.float64)


def sample_cross_entropy(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Per sample, `-log p[label]` in nats."""
    truth = np.clip(label, 0, probabilities.shape[1] - 1)[:, None]
    own = np.take_along_axis(probabilities, truth, axis=1)[:, 0]
    return -np.log(np.clip(own, SMALLEST_PROBABILITY, 1.0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
