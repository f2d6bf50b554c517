from collections import Counter

import numpy as np
import pytest

from sft_jax.data.splits import stratified, stratified_folds


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.99])
def test_every_class_gives_its_share(fraction):
    label = np.repeat([0, 1, 2, 3], [1, 2, 10, 37])
    held_out = stratified(label, fraction, 0)
    counts = Counter(label[held_out].tolist())
    for c, size in ((0, 1), (1, 2), (2, 10), (3, 37)):
        share = round(fraction * size)
        expected = min(max(share, 1), size - 1) if fraction else 0
        assert counts[c] == expected
    np.testing.assert_array_equal(held_out, stratified(label, fraction, 0))


def test_the_seed_draws_and_classes_do_not_depend_on_each_other():
    label = np.repeat([0, 1], [40, 40])
    first = stratified(label, 0.3, 0)
    assert (first != stratified(label, 0.3, 1)).any()
    # One more sample of class 1 leaves class 0 as it was.
    np.testing.assert_array_equal(stratified(np.append(label, 1), 0.3, 0)[:40], first[:40])
    # Not the first samples, nor the same of every class.
    assert not first[:12].all()
    assert (first[:40] != first[40:]).any()


def test_folds_part_every_class_evenly():
    label = np.repeat([0, 1, 2], [10, 12, 3])
    fold = stratified_folds(label, 5, 0)
    found = [np.bincount(fold[label == c], minlength=5).tolist() for c in range(3)]
    assert found == [[2] * 5, [3, 3, 2, 2, 2], [1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(fold, stratified_folds(label, 5, 0))


def test_folds_are_drawn_by_their_seed_class_by_class():
    label = np.repeat([0, 1], [40, 40])
    fold = stratified_folds(label, 4, 0)
    assert (fold != stratified_folds(label, 4, 1)).any()
    assert (fold[:40] != fold[40:]).any()
    np.testing.assert_array_equal(stratified_folds(np.append(label, 1), 4, 0)[:40], fold[:40])
    # Neither in turn nor in blocks of the file.
    assert (fold[:40] != np.arange(40) % 4).any()
    assert (np.diff(fold[:40]) < 0).any()
