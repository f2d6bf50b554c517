"""Exact metrics of classification over a split, computed on the host in float64.

Metrics are counted over samples rather than averaged over batches, so a partial last batch cannot
bias them. `weight` is how often a row counts: 0 for padding, 1 for real rows. Letters: `n` rows,
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
    """Groups of samples: names `[g]`, mean probabilities `[g, c]` and labels `[g]`."""

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

    Ties are ranked by class, lowest first, so that `k=1` agrees with `argmax`.

    Args:
        probabilities: Class probabilities of each sample.
        label: True class of each sample; ignored where `weight` is 0.
        k: Number of classes.
        weight: How often each row counts, 0 on padding; once if not given.

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

    See `top_k` for arguments and errors.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    return float(times @ sample_cross_entropy(probabilities, label) / times.sum())


def confusion_matrix(
    label: Int[Array, " n"],
    predicted: Int[Array, " n"],
    num_classes: int,
    weight: Real[Array, " n"] | None = None,
) -> Real[np.ndarray, "c c"]:
    """Counts (or summed weights) of samples by true class (rows) and predicted class (columns).

    Raises:
        DataError: A class that counts is not in 0 to `num_classes - 1`.
    """
    times = counted(weight, len(label))
    is_counted = times > 0
    label, predicted = np.asarray(label)[is_counted], np.asarray(predicted)[is_counted]
    for what, classes in (("label", label), ("predicted", predicted)):
        check_classes(what, classes, num_classes)
    cells = label.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(cells, weights=times[is_counted], minlength=num_classes**2)
    return counts.astype(times.dtype).reshape(num_classes, num_classes)


def per_class(confusion: Real[Array, "c c"]) -> dict[str, np.ndarray]:
    """Precision, recall, F1 (fractions) and support (samples) of each class, `[c]` each.

    A class that is never predicted has precision 0; one that never occurs has recall 0 and support
    0.
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


def macro_f1(confusion: Real[Array, "c c"]) -> float:
    """Mean F1 over the classes that occur among the labels."""
    scores = per_class(confusion)
    occurs = scores["support"] > 0
    if not occurs.any():
        raise DataError("confusion: found no sample, expected at least one; check the weights")
    return float(scores["f1"][occurs].mean())


def vote(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    group: Shaped[np.ndarray, " n"],
    weight: Real[Array, " n"] | None = None,
) -> Votes:
    """Averages the probabilities of each group, such as the windows of a recording.

    Args:
        probabilities: Class probabilities of each sample.
        label: True class of each sample, the same within a group.
        group: Group of each sample.
        weight: How often each row counts, 0 on padding; once if not given.

    Returns:
        One row per group, in order of their names.

    Raises:
        DataError: Samples of one group have different labels.
    """
    probabilities, label, times = distributions(probabilities, label, weight)
    is_counted = times > 0
    probabilities, label, times = probabilities[is_counted], label[is_counted], times[is_counted]
    names, first, member = np.unique(group[is_counted], return_index=True, return_inverse=True)
    odd = np.flatnonzero(label != label[first][member])
    if odd.size:
        name = names[member[odd[0]]]
        labels = sorted(set(label[member == member[odd[0]]].tolist()))
        raise DataError(
            f"group {str(name)!r}: found labels {labels}, expected one label per group; vote over "
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
    """1.0 for each sample whose class is among the `k` most probable ones, else 0.0."""
    num_classes = probabilities.shape[1]
    if not 1 <= k <= num_classes:
        raise DataError(f"top_k: found k={k}, expected 1 to {num_classes}, the number of classes")
    truth = np.clip(label, 0, num_classes - 1)[
        :, None
    ]  # labels of rows that do not count are arbitrary
    true_probability = np.take_along_axis(probabilities, truth, axis=1)
    is_tie = probabilities == true_probability
    ahead = (probabilities > true_probability) | (is_tie & (np.arange(num_classes) < truth))
    return (ahead.sum(axis=1) < k).astype(np.float64)


def sample_cross_entropy(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    """`-log p[label]` of each sample, in nats."""
    truth = np.clip(label, 0, probabilities.shape[1] - 1)[:, None]
    true_probability = np.take_along_axis(probabilities, truth, axis=1)[:, 0]
    return -np.log(np.clip(true_probability, SMALLEST_PROBABILITY, 1.0))


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.zeros_like(part), where=total > 0)
