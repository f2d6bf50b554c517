"""How samples are drawn for the splits, class by class."""

import numpy as np
from jaxtyping import Bool, Int


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
