"""Labels as users have them: on another scale, with gaps, as text, as floats, one-hot."""

import numpy as np
import pytest

from sft_jax.data.class_labels import read_classes
from sft_jax.types import DataError


@pytest.mark.parametrize(
    ("label", "expected", "names"),
    [
        ([0, 2, 1, 0], [0, 2, 1, 0], ("0", "1", "2")),
        ([1, 3, 2, 1], [0, 2, 1, 0], ("1", "2", "3")),
        ([7, -1, 40, 7], [1, 0, 2, 1], ("-1", "7", "40")),
        ([1.0, 3.0, 1.0], [0, 1, 0], ("1", "3")),
        (np.array([2, 9], np.uint64), [0, 1], ("2", "9")),
        (np.array([5, 2], np.float16), [1, 0], ("2", "5")),
        ([True, False], [1, 0], ("False", "True")),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        ([b"dog", b"cat"], [1, 0], ("cat", "dog")),
        (["10", "9", "1"], [1, 2, 0], ("1", "10", "9")),
    ],
)
def test_classes_are_the_values_that_occur(label, expected, names):
    classes = read_classes(np.asarray(label))
    assert classes.label.tolist() == expected
    assert classes.label.dtype == np.int64
    assert classes.names == names


@pytest.mark.parametrize("label", [[1, 2, 3], [0, 2], [-1, 0], [0.0, 2.0]])
def test_gaps_and_another_start_are_told(label):
    (remark,) = read_classes(np.asarray(label)).remarks
    assert "the numbers that occur: " + ", ".join(f"{v:.0f}" for v in label) in remark.replace(
        f"{len(label)} numbers", "numbers"
    )


@pytest.mark.parametrize("label", [[0, 1, 2], [0.0, 1.0], ["a", "b"], [False, True]])
def test_plain_labels_need_no_remark(label):
    assert read_classes(np.asarray(label)).remarks == ()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0.5, 1.0], r"found 0.5 for sample 0 \(1 such samples\), expected whole numbers"),
        ([1.0, np.nan], "found nan for sample 1"),
        ([1.0, np.inf], "found inf for sample 1"),
        ([0.0, 2.0**60], "for sample 1"),
        (np.eye(3, dtype=int), r"int64 of shape \(3, 3\).*label.argmax\(axis=1\)"),
        (np.eye(3), r"float64 of shape \(3, 3\).*label.argmax\(axis=1\)"),
        (np.zeros((3, 1), int), r"shape \(3, 1\).*save label\[:, 0\]"),
        (np.zeros((3, 1, 1), int), r"shape \(3, 1, 1\), expected whole numbers or text"),
        (np.zeros(3, complex), "complex128"),
        (["a", ""], "found an empty text for sample 1"),
        (np.array([b"\xff"]), "UTF-8 text in label"),
    ],
)
def test_what_is_no_class_is_refused_by_name(label, message):
    with pytest.raises(DataError, match=f"mine.npz: (label: )?.*{message}"):
        read_classes(np.asarray(label), where="mine.npz")


@pytest.mark.parametrize(
    ("label", "names", "expected", "remark"),
    [
        ([0, 2], ("a", "b", "c"), [0, 2], None),
        ([1, 2], ("a", "b", "c"), [1, 2], "number 1 is 'b'"),
        ([1, 2, 3], ("a", "b", "c"), [0, 1, 2], "1 is 'a', 2 is 'b', 3 is 'c'"),
        ([-1, 1], ("no", "yes"), [0, 1], "-1 is 'no', 1 is 'yes'"),
        (["cat", "dog"], ("dog", "cat", "cow"), [1, 0], None),
        ([False, True], ("no", "yes"), [0, 1], None),
    ],
)
def test_given_names_set_the_order(label, names, expected, remark):
    classes = read_classes(np.asarray(label), names)
    assert classes.names == names
    assert classes.label.tolist() == expected
    assert ("".join(classes.remarks) == "") if remark is None else (remark in classes.remarks[0])


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ([0, 1, 2], ("a", "b"), "3 classes, 0, 1, 2, expected numbers from 0 to 1"),
        ([0, 7], ("a", "b", "c"), "or 3 different ones"),
        (["cat"], ("dog",), "found class 'cat', expected one of data.options.class_names: dog"),
    ],
)
def test_names_that_do_not_fit_are_refused(label, names, message):
    with pytest.raises(DataError, match=message):
        read_classes(np.asarray(label), names)


def test_as_many_classes_as_samples_are_told():
    assert "20 classes in 20 samples" in read_classes(np.arange(20)).remarks[0]
    assert read_classes(np.arange(20) % 10).remarks == ()


def test_texts_that_differ_in_case_or_space_are_told():
    assert "'Cat' and 'cat '" in read_classes(np.array(["cat ", "Cat", "dog"])).remarks[0]
