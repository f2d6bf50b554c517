"""Labels, numbers and weights in a user's own arrays."""

import numpy as np
import pytest

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.data.arrays import check_arrays
from sft_jax.data.sources import open_source
from sft_jax.types import DataError, Target


def entries(n=6, **more):
    return {"a": np.random.default_rng(0).normal(size=(n, 4, 2)), **more}


def source_of(tmp_path, arrays, **options):
    np.savez(tmp_path / "x.npz", **arrays)
    options = ArraysOptions(path=str(tmp_path / "x.npz"), **options)
    return open_source(
        DataConfig(source="arrays", options=options, data_dir=str(tmp_path / "prepared"))
    )


def test_labels_are_read_with_their_unknown_entries():
    labels = np.array([[1, 0], [0, -1], [1, 1], [0, 0], [-1, -1], [1, 0]])
    table = check_arrays(entries(labels=labels), True, label_names=("x", "y"))
    assert (table.class_names, table.targets.label_names) == ((), ("x", "y"))
    expected = np.where(labels == -1, np.nan, labels)
    np.testing.assert_array_equal(np.stack([r["labels"] for r in table]), expected)
    assert all(record["label"] == 0 and np.isnan(record["value"]) for record in table)
    same = check_arrays(entries(labels=expected), True)
    np.testing.assert_array_equal(same.targets.labels, expected)
    assert same.targets.label_names == ("0", "1")


def test_numbers_are_read_as_one_or_several():
    one = check_arrays(entries(value=np.arange(6)), True)
    assert (one.targets.value_names, one[3]["value"]) == (("value",), 3.0)
    several = check_arrays(entries(value=np.arange(12.0).reshape(6, 2)), True)
    assert several.targets.value_names == ("value_0", "value_1")
    np.testing.assert_array_equal(several[2]["value"], [4, 5])


def test_a_sequence_of_such_a_name_is_a_modality_and_a_column_is_none():
    table = check_arrays(entries(value=np.zeros((6, 3, 1)), label=np.arange(6) % 2), True)
    assert [m.name for m in table.modalities] == ["a", "value"]
    assert table.targets.value is None
    table = check_arrays(entries(value=np.arange(6), label=np.arange(6) % 2), True)
    assert [m.name for m in table.modalities] == ["a"]
    assert table.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "found entries a, expected an entry 'label'.*'labels' .*'value'"),
        ({"labels": np.zeros(6)}, r"labels: found float64.*expected 0, 1, or NaN or -1"),
        ({"labels": np.full((6, 2), 0.5)}, r"labels: found 0\.5 for sample 0 \(12 such entries\)"),
        ({"labels": np.zeros((5, 2))}, "labels: found 5 samples, expected 6"),
        ({"value": np.full(6, np.inf)}, "value: found a number beyond float32 for sample 0"),
        ({"value": np.array(["a"] * 6)}, "value: found <U1"),
        ({"value": np.zeros(6), "weight": -np.ones(6)}, r"weight: found -1\.0 for sample 0"),
        ({"value": np.zeros(6), "weight": np.zeros(6)}, "weight: .*one above 0"),
        ({"value": np.zeros(6), "weight": np.zeros((6, 1))}, "weight: found float64"),
        ({"label": np.eye(6)}, "name the entry 'labels'"),
    ],
)
def test_what_cannot_be_used_is_named(more, message):
    with pytest.raises(DataError, match=message):
        check_arrays(entries(**more), True)


def test_names_must_fit_the_columns():
    with pytest.raises(DataError, match=r"1 names for 2 columns of labels.*label_names"):
        check_arrays(entries(labels=np.zeros((6, 2))), True, label_names=("x",))


def test_what_cannot_be_learned_is_remarked():
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]])
    table = check_arrays(entries(labels=labels, value=np.ones(6)), True)
    assert "labels: no sample has 0 for 1, which cannot be learned" in table.remarks
    assert "value: value is the same, or unknown, for all samples" in table.remarks


def test_targets_and_weights_come_back_from_the_prepared_data(tmp_path):
    n = 20
    labels = np.random.default_rng(0).integers(0, 2, (n, 3)).astype(float)
    labels[3, 1] = np.nan
    value = np.random.default_rng(1).normal(size=(n, 2))
    value[5, 0] = np.nan
    weight, split = np.arange(1, n + 1) / 4, np.array(["train"] * 12 + ["valid"] * 4 + ["test"] * 4)
    arrays = entries(n, labels=labels, value=value, weight=weight, split=split)
    source = source_of(tmp_path, arrays, value_names=("x", "y"))
    info = source.info
    assert (info.label_names, info.value_names) == (("0", "1", "2"), ("x", "y"))
    assert info.has_weight
    assert info.class_names == ()
    assert info.num_records == {"train": 12, "valid": 4, "test": 4}
    np.testing.assert_array_equal(source.targets("train", Target("labels", 3)), labels[:12])
    found = source.targets("test", Target("value", 2))
    np.testing.assert_array_equal(found, value[16:].astype(np.float32))
    np.testing.assert_array_equal(source.weights("valid"), weight[12:16])


def test_a_file_of_classes_keeps_its_prepared_data(tmp_path):
    """Names of labels and numbers are no part of its fingerprint while they are not given."""
    arrays = entries(20, label=np.arange(20) % 2)
    info = source_of(tmp_path, arrays).info
    assert info.value_names == info.label_names == ()
    named = source_of(tmp_path, {**arrays, "value": np.arange(20.0)}, value_names=("x",)).info
    assert (named.value_names, named.class_names) == (("x",), ("0", "1"))
    assert info.fingerprint != named.fingerprint
