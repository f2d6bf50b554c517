"""Names of splits, and samples drawn for them class by class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

# Names of splits in lower case, and the split that each means.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Groups compared for each draw, to bound the time.
_CANDIDATES = 256


def stratified(label: Int[np.ndarray, " n"], fraction: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Draws `fraction` of every class, `[n]` bool, true where a sample is held out.

    Counts are rounded half to even, but a fraction above zero takes at least one sample of a class
    and below one leaves at least one; a class of one sample is left alone. Every class has a
    stream of its own, so that one more sample changes no other class.
    """
    held_out = np.zeros(len(label), bool)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)
        size = round(fraction * len(rows))
        if 0 < fraction < 1:
            size = min(max(size, 1), len(rows) - 1)
        order = np.random.default_rng([seed, int(c)]).permutation(len(rows))
        held_out[rows[order[:size]]] = True
    return held_out


def stratified_folds(label: Int[np.ndarray, " n"], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Deals the samples of every class to `folds` folds in turn; the fold of each sample.

    The order in which a class is dealt is drawn by `seed`, class by class. Where a class does not
    divide evenly, the first folds have one sample more.
    """
    fold = np.zeros(len(label), np.int64)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)
        order = np.random.default_rng([seed, int(c)]).permutation(len(rows))
        fold[rows[order]] = np.arange(len(rows)) % folds
    return fold


def hold_out(
    label: Int[np.ndarray, " n"], group: Sequence[str], fraction: float, seed: int
) -> Bool[np.ndarray, " n"]:
    """Draws samples by class, `[n]` bool, without parting a group.

    Where every sample is a group of its own, this is `stratified`. Otherwise `fraction` of the
    groups is drawn, at least one if it is above zero: each time the group that brings the counts of
    the classes closest to their share, and where possible none that leaves a class without samples.

    Args:
        label: Class of each sample, from 0.
        group: Group of each sample.
        fraction: Share to hold out.
        seed: Seed of the draw.
    """
    names, index = np.unique(np.asarray(group), return_inverse=True)
    if len(names) == len(label):
        return stratified(label, fraction, seed)
    if not fraction:
        return np.zeros(len(label), bool)
    counts = np.zeros((len(names), int(label.max()) + 1), np.int64)
    np.add.at(counts, (index, label), 1)
    return _draw_groups(counts, max(1, round(fraction * len(names))), seed)[index]


def _draw_groups(
    counts: Int[np.ndarray, "groups classes"], number: int, seed: int
) -> Bool[np.ndarray, " groups"]:
    order = np.random.default_rng(seed).permutation(len(counts))
    left = counts.sum(axis=0)
    wanted = left * number / len(counts)
    weight = 1 / np.where(left > 0, wanted, 1)  # as in a chi-squared distance
    held_out = np.zeros(len(counts), bool)
    drawn = np.zeros_like(left)
    for _ in range(min(number, len(counts))):
        candidates = order[~held_out[order]][:_CANDIDATES]
        distance = (weight * (drawn + counts[candidates] - wanted) ** 2).sum(axis=1)
        takes_last = ((left > 0) & (left == counts[candidates])).any(axis=1)
        best = candidates[np.lexsort((distance, takes_last))[0]]
        held_out[best] = True
        drawn += counts[best]
        left = left - counts[best]
    return held_out
