"""Entries beside the data: none becomes a modality, or leaks the label, without a word."""

import numpy as np
import pytest

from sft_jax.data.arrays import check_arrays
from sft_jax.data.class_labels import determines_label
from sft_jax.types import DataError

N = 60
LABEL = np.random.default_rng(3).integers(0, 3, N)


def entries(**more):
    noise = np.random.default_rng(0).normal(size=(N, 8, 3))
    return {"label": LABEL, "audio": noise, **more}


def names(table):
    return [modality.name for modality in table.modalities]


BESIDE = {
    "onehot": np.eye(3, dtype=int)[LABEL],
    "flags": LABEL[:, None] == np.arange(3),
    "subject": np.arange(N)[:, None] % 7,
    "session": np.arange(N)[:, None, None] % 7,
    "age": np.linspace(20, 60, N),
    "city": np.array(["x", "y"] * (N // 2)),
    "rate": np.array(16000.0),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_sequence_is_left_out_and_told(name):
    table = check_arrays(entries(**{name: BESIDE[name]}), require_label=True)
    assert names(table) == ["audio"]
    (remark,) = table.remarks
    assert remark.startswith(f"entry {name} is left out, not a modality: ")


@pytest.mark.parametrize("name", ["onehot", "subject"])
def test_it_is_taken_where_it_is_named_or_said_to_be_a_sequence(name):
    content = entries(**{name: BESIDE[name]})
    table = check_arrays(content, require_label=True, modalities=(name, "audio"))
    assert names(table) == [name, "audio"]
    assert table.remarks  # determines the label, or is one whole number
    said = content | {f"length/{name}": np.ones(N, int)}
    assert names(check_arrays(said, require_label=True)) == ["audio", name]


def test_a_file_of_words_keeps_them():
    words = np.random.default_rng(0).integers(0, 50, (N, 6))
    table = check_arrays({"label": LABEL, "words": words}, require_label=True)
    assert names(table) == ["words"]
    assert table.remarks == ()


def test_named_entries_are_taken_in_their_order_and_the_rest_is_told():
    content = entries(video=np.ones((N, 2, 2)), text=np.full((N, 4), "x"))
    content |= {"mask/text": np.ones((N, 4), bool)}
    table = check_arrays(content, require_label=True, modalities=("video", "audio"))
    assert names(table) == ["video", "audio"]
    assert table.remarks == ("entry text is left out, not a modality: not one of those asked for",)
    with pytest.raises(DataError, match=r"modalities: found vidoe, expected names out of audio"):
        check_arrays(content, require_label=True, modalities=("vidoe",))


def test_a_file_without_a_sequence_says_what_was_left_out():
    with pytest.raises(DataError, match=r"found 0 in .*left out onehot: a table of 0 and 1"):
        check_arrays({"label": LABEL, "onehot": BESIDE["onehot"]}, require_label=True)


LEAKS = {
    "one-hot features": np.eye(3)[LABEL][:, None, :],
    "a column among noise": np.concatenate(
        [np.random.default_rng(0).normal(size=(N, 4)), LABEL[:, None] * 1.5], axis=1
    ),
    "one-hot among noise": np.concatenate(
        [np.random.default_rng(0).normal(size=(N, 4)), np.eye(3)[LABEL]], axis=1
    ),
    "bits": (LABEL[:, None] >> np.arange(2)) & 1,
    "subjects of one class each": (LABEL * 5 + np.arange(N) % 5)[:, None],
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_modality_that_determines_the_label_is_told(leak):
    assert determines_label(LEAKS[leak], LABEL)
    order = np.random.default_rng(1).permutation(N)
    assert not determines_label(LEAKS[leak], LABEL[order])
    values = LEAKS[leak] if LEAKS[leak].ndim == 3 else LEAKS[leak][:, None, :]
    table = check_arrays(entries(x=values.astype(float)), require_label=True)
    assert any("modality x determines the label" in remark for remark in table.remarks)


@pytest.mark.parametrize("seed", range(5))
def test_honest_data_raise_no_warning(seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, N)
    assert not determines_label(rng.normal(size=(N, 9, 3)), label)
    assert not determines_label(rng.integers(0, 30, (N, 20)), label)
    assert not determines_label(rng.integers(0, 2, (N, 20)), label)
    rare = np.zeros(N, int)
    rare[:2] = 1
    assert not determines_label(rng.integers(0, 100, (N, 20)), rare)
    assert not determines_label(np.zeros((N, 5)), label)
    assert not determines_label(np.arange(N)[:, None], label)
