"""Splits of a user's arrays: drawn by class, or brought by the file."""

import numpy as np
import pytest

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.data.arrays import check_arrays
from sft_jax.data.builders.arrays import assign_splits
from sft_jax.data.records import describe
from sft_jax.data.sources import open_source, prepare
from sft_jax.data.splits import hold_out
from sft_jax.types import DataError


def assign(label, group=None, split=None, **options):
    """Splits, remarks and the rows of each split."""
    n = len(label)
    entries = {"a": np.random.default_rng(0).normal(size=(n, 2, 1)), "label": np.asarray(label)}
    if group is not None:
        entries["group"] = np.asarray(group)
    if split is not None:
        entries["split"] = np.asarray(split)
    return assign_splits(check_arrays(entries, require_label=True), ArraysOptions(**options))


def counts(split, label):
    return {
        name: np.bincount(np.asarray(label)[split == name], minlength=max(label) + 1).tolist()
        for name in ("train", "valid", "test")
    }


def test_every_class_gives_its_share():
    label = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    split, remarks = assign(label)
    assert counts(split, label) == {
        "train": [30, 6, 1, 1],
        "valid": [10, 2, 0, 0],
        "test": [10, 2, 1, 0],
    }
    assert remarks == ()
    np.testing.assert_array_equal(split, assign(label)[0])
    assert (split != assign(label, split_seed=1)[0]).any()


@pytest.mark.parametrize("seed", range(10))
def test_groups_stay_together_and_no_class_leaves_training(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 20, 200)
    label = np.where(group < 14, rng.integers(0, 3, 200), 3)  # class 3 has groups of its own
    split, _ = assign(label, group, split_seed=seed)
    for name in np.unique(group):
        assert len(set(split[group == name])) == 1
    found = counts(split, label)
    assert min(found["train"]) > 0
    assert min(found["test"]) > 0
    assert [len(set(group[split == name])) for name in ("train", "valid", "test")] == [12, 4, 4]
    # Shares of every class are nearer to what they should be than by chance.
    assert abs(found["test"][3] / np.count_nonzero(label == 3) - 0.2) < 0.2


def test_a_class_with_one_group_stays_in_training():
    label = np.repeat([0, 1], [18, 2])
    group = [f"p{i // 2}" for i in range(20)]
    for seed in range(10):
        held_out = hold_out(label, group, 0.3, seed)
        assert not held_out[-1]
        assert held_out.sum() == 6


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(DataError, match=r"group: found 2 groups, expected more than"):
        assign([0, 1, 0, 1], [0, 0, 1, 1])
    split, _ = assign([0, 0, 0], valid_fraction=0.0, test_fraction=0.01)
    assert sorted(split) == ["test", "train", "train"]


def test_a_split_that_could_not_be_filled_is_told():
    split, remarks = assign([0, 1, 2])
    assert set(split) == {"train"}
    assert [text.partition(":")[0] for text in remarks] == [
        "split valid is empty",
        "split test is empty",
    ]
    assert assign([0, 1, 2], valid_fraction=0.0, test_fraction=0.0)[1] == ()


@pytest.mark.parametrize("valid", ["valid", "val", "VAL", "Dev", "validation", " valid "])
def test_the_splits_of_a_file_are_used(valid):
    given = ["train"] * 4 + [valid] * 2 + ["TEST"] * 2
    split, remarks = assign(np.arange(8) % 2, split=given)
    assert split.tolist() == ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    assert len(remarks) == 1
    assert "those of the entry 'split'" in remarks[0]
    np.testing.assert_array_equal(split, assign(np.arange(8) % 2, split=np.bytes_(given))[0])


def test_validation_is_held_out_of_training_where_the_file_has_none():
    label = np.arange(30) % 3
    given = np.repeat(["train", "test"], [21, 9])
    split, remarks = assign(label, split=given, valid_fraction=0.3)
    assert counts(split, label) == {"train": [5, 5, 5], "valid": [2, 2, 2], "test": [3, 3, 3]}
    assert (split[21:] == "test").all()
    assert "6 training samples were held out for it (valid_fraction 0.3)" in remarks[-1]
    unchanged, remarks = assign(label, split=given, valid_fraction=0.0)
    np.testing.assert_array_equal(unchanged, given)
    assert len(remarks) == 1


def test_what_is_wrong_with_the_splits_of_a_file_is_told():
    label = [0, 0, 0, 0]
    _, remarks = assign(label, group=["p", "p", "q", "q"], split=["train", "dev", "train", "train"])
    assert any("no test samples" in text for text in remarks)
    assert any("1 groups have samples in more than one split: p" in text for text in remarks)
    with pytest.raises(DataError, match=r"split: found 'tset' for sample 1, expected one of train"):
        assign(label, split=["train", "tset", "train", "test"])
    with pytest.raises(DataError, match=r"split: found test alone, expected some samples to train"):
        assign(label, split=["test"] * 4)
    with pytest.raises(DataError, match=r"split: found 3 samples, expected 4"):
        assign(label, split=["train"] * 3)


@pytest.fixture
def rare(tmp_path):
    """60 samples, of which one each has classes 1 and 2."""
    label = np.zeros(60, int)
    label[7], label[9] = 1, 2
    path = tmp_path / "mine.npz"
    np.savez(path, label=label, audio=np.random.default_rng(0).normal(size=(60, 8, 3)))
    options = ArraysOptions(path=str(path))
    return DataConfig(source="arrays", options=options, data_dir=str(tmp_path / "d"))


def test_a_class_that_a_split_has_no_sample_of_is_told(rare):
    info = prepare(rare)
    assert info.class_counts["train"] == (34, 1, 1)
    assert info.warnings == (
        "split valid has no sample of 2 classes of 3, which cannot be scored there: 1, 2",
        "split test has no sample of 2 classes of 3, which cannot be scored there: 1, 2",
    )
    assert f"warning      {info.warnings[0]}" in describe(info)
    assert open_source(rare).info.warnings == info.warnings
