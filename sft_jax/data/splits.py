"""Names of splits, and stratified draws of held-out samples."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

# Split meant by each accepted name, in lower case.
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Groups compared for each draw, to bound the time.
_MAX_CANDIDATES = 256


def stratified(label: Int[np.ndarray, " n"], fraction: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Draws a fraction of every class; returns `[n]`, true where a sample is held out.

    Counts are rounded half to even, but a fraction above zero takes at least one sample of a class
    and a fraction below one leaves at least one; a class of one sample is never held out. Each
    class has its own random stream, so an additional sample changes no other class.
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
    """Distributes the samples of every class over folds in random order; returns `[n]` folds.

    If the size of a class is not a multiple of `folds`, the first folds have one sample more.
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
    """Draws samples by class without splitting a group; returns `[n]`, true where held out.

    If every sample is its own group, this is `stratified`. Otherwise a fraction of the groups is
    drawn, at least one if it is above zero. Each draw takes the group that brings the class counts
    closest to their share, and if possible none that leaves a class without samples.
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
    counts: Int[np.ndarray, "groups classes"], num_groups: int, seed: int
) -> Bool[np.ndarray, " groups"]:
    order = np.random.default_rng(seed).permutation(len(counts))
    remaining = counts.sum(axis=0)
    target = remaining * num_groups / len(counts)
    weight = 1 / np.where(remaining > 0, target, 1)  # as in a chi-squared distance
    held_out = np.zeros(len(counts), bool)
    drawn = np.zeros_like(remaining)
    for _ in range(min(num_groups, len(counts))):
        candidates = order[~held_out[order]][:_MAX_CANDIDATES]
        distance = (weight * (drawn + counts[candidates] - target) ** 2).sum(axis=1)
        takes_last = ((remaining > 0) & (remaining == counts[candidates])).any(axis=1)
        best = candidates[np.lexsort((distance, takes_last))[0]]
        held_out[best] = True
        drawn += counts[best]
        remaining = remaining - counts[best]
    return held_out


def train_test_rows(
    held_out: Bool[np.ndarray, " n"], num_test: int
) -> dict[str, tuple[str, Int[np.ndarray, " _"]]]:
    """Returns the file (`train` or `test`) and the rows of every split.

    Rows of the training file that are held out are for validation.
    """
    return {
        "train": ("train", np.flatnonzero(~held_out)),
        "valid": ("train", np.flatnonzero(held_out)),
        "test": ("test", np.arange(num_test)),
    }
