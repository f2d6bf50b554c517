"""Exact metrics over a whole split, computed on the host in float64.

They are counted over samples, never averaged over batches, so a ragged last batch cannot bias them.
`weight` says how often a row counts: 0 on rows that pad a batch, 1 on real ones. Letters: `n` rows,
`c` classes, `g` groups. Fractions are between 0 and 1; cross-entropy is in nats.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

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
    probabilities, label, times = _checked(probabilities, label, weight)
    return float(times @ _hits(probabilities, label, k) / times.sum())


def cross_entropy(
    probabilities: Float[Array, "n c"],
    label: Int[Array, " n"],
    weight: Real[Array, " n"] | None = None,
) -> float:
    """Mean of `-log p[label]` in nats; `p` is at least `SMALLEST_PROBABILITY`.

    Arguments and errors are those of `top_k`.
    """
    probabilities, label, times = _checked(probabilities, label, weight)
    return float(times @ _nats(probabilities, label) / times.sum())


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
    times = _times(weight, len(label))
    kept = times > 0
    label, predicted = np.asarray(label)[kept], np.asarray(predicted)[kept]
    for what, classes in (("label", label), ("predicted", predicted)):
        _check_classes(what, classes, num_classes)
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
    times = _times(weight, len(label))
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
    probabilities, label, times = _checked(probabilities, label, weight)
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


def bootstrap_interval(
    statistic: Real[Array, " n"] | Callable[[np.ndarray], float],
    n: int,
    seed: int,
    level: float = 0.95,
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    replicates: int = 1000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over `n` samples (Efron, 1979).

    Whole groups are drawn with replacement where `groups` is given: overlapping windows of one
    recording are not independent, and an interval that drew them one by one would be too narrow.
    The interval covers the choice of samples alone, not that of the training seed.

    Args:
        statistic: a value per sample, whose mean is meant, or a function from how often each sample
            was drawn (`[n]`, whole numbers) to the statistic.
        n: number of samples.
        seed: equal seeds draw equal samples, whatever the statistic.
        level: probability covered.
        groups: name of each sample's group.
        replicates: resamplings.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: fewer than two groups (or samples), values that are not `n`, or a level that is
            not between 0 and 1.
    """
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(member.max()) + 1 if n else 0
    if units < 2 or len(member) != n:
        raise DataError(
            f"bootstrap: found {units} groups over {len(member)} samples, expected at least 2 over "
            f"{n}; give one group a sample, or state no interval"
        )
    if not 0 < level < 1:
        raise DataError(f"bootstrap: found level {level}, expected it between 0 and 1, e.g. 0.95")
    if not callable(statistic):
        values = np.asarray(statistic, np.float64)
        if len(values) != n:
            raise DataError(f"bootstrap: found {len(values)} values, expected one for each of {n}")

        def statistic(times: np.ndarray) -> float:
            return times @ values / times.sum()

    rng = np.random.default_rng(seed)
    drawn = np.empty(replicates)
    for replicate in range(replicates):
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        drawn[replicate] = statistic(times[member])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Every metric of a split in plain values: the content of `evaluation_<split>.json`.

    `top3` is there from 4 classes on, `top5` from 10. Intervals cover 95 % and resample groups
    where there are some (see `bootstrap_interval`); their ends are None with fewer than two of
    them; `resampled` says what was drawn. `group` judges groups by `vote`; it is None without
    groups, with one sample a group, and where a group holds several classes.

    Args:
        probabilities: class probabilities of each sample.
        label: true class of each sample.
        weight: how often each row counts, 0 on padding.
        split: name of the split.
        step: optimizer step of the parameters.
        class_names: name of each class.
        train_counts: samples of each class in the training split, for the majority baseline.
        group: name of each sample's group, e.g. its recording.
        seed: draws the bootstrap.
        replicates: of the bootstrap.

    Raises:
        DataError: names and classes disagree in number, or the arrays cannot be used.
    """
    probabilities, label, times = _checked(probabilities, label, weight)
    num_classes = probabilities.shape[1]
    _check_names(split, class_names, train_counts, num_classes)
    probabilities, label = (np.repeat(rows, times, axis=0) for rows in (probabilities, label))
    group = None if group is None else np.repeat(group, times)
    predicted = probabilities.argmax(axis=1)
    majority, majority_top1 = majority_baseline(train_counts, label)
    scores = per_class(confusion_matrix(label, predicted, num_classes))
    bootstrap = {"seed": seed, "replicates": replicates}
    return {
        "split": split,
        "step": step,
        "num_samples": len(label),
        "metrics": _sample_level(probabilities, label, predicted, group, bootstrap),
        "resampled": "sample" if group is None else "group",
        "majority": {"class": class_names[majority], "top1": majority_top1},
        "per_class": [
            {"class": name, **{key: values[i].item() for key, values in scores.items()}}
            for i, name in enumerate(class_names)
        ],
        "confusion": confusion_matrix(label, predicted, num_classes).tolist(),
        "group": _group_level(probabilities, label, group, bootstrap),
    }


def _sample_level(
    probabilities: np.ndarray,
    label: np.ndarray,
    predicted: np.ndarray,
    group: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, dict[str, float | None]]:
    n, num_classes = probabilities.shape

    def f1(times: np.ndarray) -> float:
        return macro_f1(confusion_matrix(label, predicted, num_classes, times))

    ks = [k for k, least in ((1, 1), (3, 4), (5, 10)) if num_classes >= least]
    statistics = {f"top{k}": _hits(probabilities, label, k) for k in ks}
    statistics |= {"loss": _nats(probabilities, label), "macro_f1": f1}
    return {name: _estimate(what, n, group, bootstrap) for name, what in statistics.items()}


def _group_level(
    probabilities: np.ndarray,
    label: np.ndarray,
    group: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, Any] | None:
    if group is None:
        return None
    members = {}
    for name, cls in zip(group.tolist(), label.tolist(), strict=True):
        members.setdefault(name, set()).add(cls)
    if len(members) == len(label) or max(map(len, members.values())) > 1:
        return None
    votes = vote(probabilities, label, group)
    hits = _hits(votes.probabilities, votes.label, 1)
    return {"num_groups": len(hits), "top1": _estimate(hits, len(hits), None, bootstrap)}


def _estimate(
    statistic: np.ndarray | Callable[[np.ndarray], float],
    n: int,
    groups: np.ndarray | None,
    bootstrap: dict[str, int],
) -> dict[str, float | None]:
    value = statistic(np.ones(n, np.int64)) if callable(statistic) else statistic.mean()
    low = high = None
    if (n if groups is None else len(np.unique(groups))) >= 2:
        low, high = bootstrap_interval(statistic, n, groups=groups, **bootstrap)
    return {"value": float(value), "low": low, "high": high}


def _hits(probabilities: np.ndarray, label: np.ndarray, k: int) -> np.ndarray:
    num_classes = probabilities.shape[1]
    if not 1 <= k <= num_classes:
        raise DataError(f"top_k: found k={k}, expected 1 to {num_classes}, the number of classes")
    truth = np.clip(label, 0, num_classes - 1)[:, None]  # rows that do not count hold any label
    own = np.take_along_axis(probabilities, truth, axis=1)
    ahead = (probabilities > own) | ((probabilities == own) & (np.arange(num_classes) < truth))
    return (ahead.sum(axis=1) < k).astype(np.float64)


def _nats(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    truth = np.clip(label, 0, probabilities.shape[1] - 1)[:, None]
    own = np.take_along_axis(probabilities, truth, axis=1)[:, 0]
    return -np.log(np.clip(own, SMALLEST_PROBABILITY, 1.0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _checked(
    probabilities: Array, label: Array, weight: Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 probabilities, labels, and how often each row counts; only those rows are checked."""
    probabilities, label = np.asarray(probabilities, np.float64), np.asarray(label)
    times = _times(weight, len(label))
    kept = times > 0
    rows = probabilities[kept]
    good = np.isfinite(rows).all(axis=1) & (rows >= 0).all(axis=1)
    good[good] = np.abs(rows[good].sum(axis=1) - 1) < 1e-2  # rows rounded to bfloat16 pass
    if not good.all():
        at = int(np.flatnonzero(kept)[np.argmin(good)])
        raise DataError(
            f"probabilities: found {int((~good).sum())} rows that are no distribution (the first: "
            f"row {at}, {probabilities[at]}), expected finite values >= 0 that sum to 1; take the "
            "softmax of the logits, and check them for NaN"
        )
    _check_classes("label", label[kept], probabilities.shape[1])
    return np.where(kept[:, None], probabilities, 0.0), label, times


def _check_names(split: str, names: Sequence[str], train_counts: Array, num_classes: int):
    if not len(names) == len(train_counts) == num_classes:
        raise DataError(
            f"{split}: found {len(names)} class_names and {len(train_counts)} train_counts, "
            f"expected {num_classes} of each, one a class; take both from the prepared data"
        )


def _check_classes(what: str, classes: np.ndarray, num_classes: int):
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise DataError(
            f"{what}: found classes {classes.min()} to {classes.max()}, expected 0 to "
            f"{num_classes - 1}; check that data and model agree on num_classes"
        )


def _times(weight: Array | None, n: int) -> np.ndarray:
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    times = np.where(np.isfinite(weight), weight, -1.0).round().astype(np.int64)
    if len(times) != n or not (times == weight).all() or (times < 0).any() or not times.any():
        raise DataError(
            f"weight: found {weight}, expected {n} whole numbers, 0 on rows that pad and 1 on real "
            "ones, with at least one real row; check how the batches were padded and joined"
        )
    return times
