import pickle

import numpy as np
import pytest

from sft_jax.config.data import DataConfig, MmsaPickleOptions
from sft_jax.config.run import Config
from sft_jax.config.task import TaskConfig
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.builders.mmsa_pickle import MmsaPickle
from sft_jax.data.sources import open_source, open_source_of_run, prepare
from sft_jax.tasks import resolve
from sft_jax.types import ConfigError, DataError

T = {"vision": 6, "audio": 5, "text": 4}
F = {"vision": 3, "audio": 2, "text": 5}
SIZES = {"train": 5, "valid": 2, "test": 3}
VALUES = np.array([-3.0, -1.5, 0.4, 2.5, 3.0])
CLASSES = [0, 1, 3, 5, 6]


def lengths(count, steps):
    return (np.arange(count) * 2) % steps + 1


def content_of(bert=True):
    """Padding at the end holds numbers, so that only lengths tell it from what is real."""
    rng = np.random.default_rng(0)
    content = {}
    for split, count in SIZES.items():
        entries = {m: rng.uniform(1, 2, (count, T[m], F[m])).astype(np.float32) for m in T}
        for m in ("audio", "vision"):
            entries[f"{m}_lengths"] = lengths(count, T[m]).tolist()
        attended = np.arange(T["text"]) < lengths(count, T["text"])[:, None]
        if bert:
            entries["text_bert"] = np.stack([attended * 7, attended, attended * 0], 1).astype("f4")
        else:
            entries["text"][~attended] = 0
        entries["raw_text"] = np.array(["words"] * count, object)
        entries["id"] = [f"{split}{i // 2}$_${i}" for i in range(count)]
        entries["regression_labels"] = VALUES[:count]
        entries["classification_labels"] = np.zeros(count)
        content[split] = entries
    return content


def config(tmp_path, content, protocol=4, **options):
    path = tmp_path / "unaligned_50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    options = MmsaPickleOptions(path=str(path), **options)
    return DataConfig(source="mmsa_pickle", options=options, data_dir=str(tmp_path / "d"))


@pytest.mark.parametrize("bert", [True, False])
@pytest.mark.parametrize("as_lists", [True, False])
def test_records_by_hand(tmp_path, bert, as_lists):
    content = given = content_of(bert)
    if as_lists:
        given = {
            s: {k: v if isinstance(v, list) else list(v) for k, v in entries.items()}
            for s, entries in content.items()
        }
    source = open_source(config(tmp_path, given))
    info = source.info
    assert [(m.name, m.length, m.feature_dim) for m in info.modalities] == [
        ("vision", 6, 3),
        ("audio", 5, 2),
        ("text", 4, 5),
    ]
    assert info.num_records == SIZES
    assert info.class_values == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert (info.value_names, info.label_names, info.remarks) == (("sentiment",), (), ())
    assert info.repairs == {}
    np.testing.assert_allclose(source.values("train"), VALUES, rtol=1e-7)
    assert [record["label"] for record in source.split("train")] == CLASSES
    assert source.ids("test") == ["test0$_$0", "test0$_$1", "test1$_$2"]
    assert source.groups("test") == ["test0", "test0", "test1"]
    for split, count in SIZES.items():
        for row, record in enumerate(source.split(split)):
            for m in T:
                real = np.arange(T[m]) < lengths(count, T[m])[row]
                np.testing.assert_array_equal(record["mask"][m], real)
                expected = np.where(real[:, None], content[split][m][row], 0)
                np.testing.assert_array_equal(record["inputs"][m], expected)


def test_only_values_of_real_steps_count_as_repaired(tmp_path):
    content = content_of()
    # Its lengths are 1, 3, 5, 2, 4.
    content["train"]["audio"][0, 0, 0] = -np.inf
    content["train"]["audio"][0, 1, 0] = -np.inf
    content["test"]["audio"][1, 2, 1] = np.nan
    source = open_source(config(tmp_path, content))
    assert source.info.repairs == {"audio: -inf set to 0": 1, "audio: NaN set to 0": 1}
    # A step stays real whose features all became 0, since its length says so.
    assert source.split("train")[0]["mask"]["audio"][0]
    assert all(
        np.isfinite(record["inputs"]["audio"]).all()
        for split in SIZES
        for record in source.split(split)
    )


def views(column, names="TAV"):
    """Other numbers under `regression_labels_T` and so on."""
    content = content_of()
    for count, entries in zip(SIZES.values(), content.values(), strict=True):
        for place, name in enumerate(names):
            entries[f"{column}_{name}"] = np.roll(VALUES, place + 1)[:count].astype("f4")
    return content


@pytest.mark.parametrize(
    ("target", "shift", "name"),
    [
        ("regression_labels", 0, "sentiment"),
        ("T", 1, "sentiment_text"),
        ("A", 2, "sentiment_audio"),
        ("V", 3, "sentiment_vision"),
        ("M", 0, "sentiment"),
    ],
)
def test_the_target_is_a_column_of_the_file(tmp_path, target, shift, name):
    source = open_source(config(tmp_path, views("regression_labels"), target=target))
    np.testing.assert_allclose(source.values("train"), np.roll(VALUES, shift), rtol=1e-6)
    assert [record["label"] for record in source.split("train")] == np.roll(CLASSES, shift).tolist()
    assert source.info.value_names == (name,)


def test_a_column_of_all_views_comes_before_the_general_one(tmp_path):
    content = views("regression_labels", "M")
    source = open_source(config(tmp_path, content, target="M"))
    np.testing.assert_allclose(source.values("train"), np.roll(VALUES, 1), rtol=1e-6)
    del content["test"]["regression_labels_M"]
    with pytest.raises(
        DataError, match=r"test: found .* without regression_labels_M, .*target='M'"
    ):
        prepare(config(tmp_path, content, target="M"))


def test_a_target_that_the_file_lacks(tmp_path):
    expected = (
        r"train: found .* without regression_labels_A, expected regression_labels_A, for "
        r"data\.options\.target='A'; set data\.options\.target to 'regression_labels' or 'T' or 'M'"
    )
    with pytest.raises(DataError, match=expected):
        prepare(config(tmp_path, views("regression_labels", "T"), target="A"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        # As of CH-SIMS.
        ([-1.0, -0.8, 0.0, 0.2, 1.0], "from -1 to 1"),
        ([0.0, 0.0, 0.2, 0.2, 0.2], "from 0 to 0.2"),
        ([0.0, 10.0, 50.0, 99.5, 100.0], "from 0 to 100"),
        ([-3.5, 0.0, 0.0, 0.0, 1.0], "from -3.5 to 1"),
    ],
)
def test_numbers_on_another_scale_are_no_classes(tmp_path, values, told):
    content = content_of()
    for split, count in SIZES.items():
        content[split]["regression_labels"] = np.array(values[:count], np.float32)
    source = open_source(config(tmp_path, content))
    info = source.info
    assert info.class_names == info.class_values == ()
    assert info.value_names == ("sentiment",)
    (remark,) = info.warnings
    for part in (f"regression_labels are {told},", "from -3 to 3", "no classes", "'regression'"):
        assert part in remark
    np.testing.assert_allclose(source.values("train"), values, rtol=1e-6)
    assert {record["label"] for record in source.split("train")} == {0}
    assert resolve(Config(), info).name == "regression"
    wanted = Config(task=TaskConfig(name="classification"))
    with pytest.raises(ConfigError, match=r"given 'classification' .*targets for regression,"):
        resolve(wanted, info)


def test_one_number_beyond_1_is_on_the_scale_of_the_classes(tmp_path):
    content = content_of()
    for split, count in SIZES.items():
        content[split]["regression_labels"] = np.zeros(count)
    content["test"]["regression_labels"][1] = 1.2
    source = open_source(config(tmp_path, content))
    assert [record["label"] for record in source.split("test")] == [3, 4, 3]
    # Lost samples are an error, not another scale, as long as training has none of them.
    content["test"]["regression_labels"][1] = 7
    with pytest.raises(DataError, match=r"test/regression_labels: found 7\.0 for sample 1 .*-3 to"):
        prepare(config(tmp_path, content))


@pytest.mark.parametrize("missing", [("audio", "vision"), ("audio",), ("vision",)])
def test_without_lengths_steps_of_zeros_are_padding(tmp_path, missing):
    """As in `aligned_50.pkl`."""
    content = content_of()
    for entries in content.values():
        for m in missing:
            steps = np.arange(T[m])
            # In front, or at the end.
            entries[m][steps < lengths(len(entries["id"]), T[m])[:, None]] = 0
            del entries[f"{m}_lengths"]
    content["train"][missing[0]][0, :2, 0] = [np.nan, 1.0]
    source = open_source(config(tmp_path, content))
    for m in missing:
        for row, record in enumerate(source.split("train")):
            real = np.nan_to_num(content["train"][m][row]).any(1)
            np.testing.assert_array_equal(record["mask"][m], real)
    (remark,) = source.info.remarks
    assert all(f"{m}_lengths" in remark for m in missing)
    assert f"steps of {' and '.join(missing)} are real if any feature is not 0" in remark


def test_a_run_keeps_the_records_of_an_earlier_version(tmp_path, monkeypatch):
    made = config(tmp_path, content_of())
    with monkeypatch.context() as earlier:
        earlier.setattr(MmsaPickle, "VERSION", SourceBuilder.VERSION)
        # Before there was a choice of targets.
        earlier.setattr(MmsaPickle, "identity", lambda _: {})
        first = prepare(made)
    assert open_source_of_run(made, first.fingerprint).info == first
    assert prepare(made).fingerprint != first.fingerprint


def put(split, key, make):
    def change(content):
        content[split][key] = make(content[split][key])
        return content

    return change


def drop(split, key):
    def change(content):
        del content[split][key]
        return content

    return change


BROKEN = {
    "missing split": (
        lambda c: {"train": c["train"], "test": c["test"]},
        ["file: found train, test without valid", "check data.source"],
    ),
    "aligned file": (
        drop("test", "vision_lengths"),
        ["test: found", "without vision_lengths", "as in the other splits", "from all splits"],
    ),
    "length beyond the array": (
        put("valid", "audio_lengths", lambda x: [2, 6]),
        ["valid/audio_lengths: found 6 for sample 1", "0 to 5", "pad the array"],
    ),
    "negative length": (
        put("valid", "vision_lengths", lambda x: [-1, 6]),
        ["valid/vision_lengths: found -1 for sample 0", "0 to 6", "correct the length"],
    ),
    "too few lengths": (
        put("train", "audio_lengths", lambda x: x[1:]),
        ["train/audio_lengths: found int64 of shape (4,)", "(5,)", "get the file again"],
    ),
    "lengths of another type": (
        put("train", "audio_lengths", lambda x: [float(v) for v in x]),
        ["train/audio_lengths: found float64", "whole numbers of shape (5,)", "get the file"],
    ),
    "attention mask of another length": (
        put("train", "text_bert", lambda x: x[:, :, 1:]),
        ["train/text_bert: found float32 of shape (5, 3, 3)", "(5, 3, 4)", "get the file"],
    ),
    "attention mask of other numbers": (
        put("train", "text_bert", lambda x: x * 2),
        ["train/text_bert: found other numbers", "0 or 1", "remove the entry"],
    ),
    "modalities disagree": (
        put("test", "text", lambda x: x[1:]),
        ["test/text: found 2 samples", "expected 3, as test/vision has", "get the file again"],
    ),
    "label out of range": (
        put("test", "regression_labels", lambda x: x * 2),
        ["test/regression_labels: found -6.0 for sample 0", "from -3 to 3", "remove these"],
    ),
    "label NaN": (
        put("test", "regression_labels", lambda x: x * np.nan),
        ["test/regression_labels: found nan for sample 0 (3 such", "finite", "remove these"],
    ),
    "no labels": (
        drop("valid", "regression_labels"),
        ["valid: found", "without regression_labels", "target='regression_labels'", "get the file"],
    ),
    "labels of another rank": (
        put("test", "regression_labels", lambda x: x[:, None]),
        ["test/regression_labels: found float64 of shape (3, 1)", "(3,)", "get the file"],
    ),
    "text for features": (
        put("valid", "text", lambda x: ["words", "words"]),
        ["valid/text: found a list of 2, of str", "[n, t, f]", "save it as one array"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_told_by_file_key_and_remedy(tmp_path, what):
    change, words = BROKEN[what]
    with pytest.raises(ValueError, match="expected") as caught:
        prepare(config(tmp_path, change(content_of())))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'unaligned_50.pkl'}: ")
    assert [word for word in words if word not in message] == []


def test_no_file(tmp_path):
    options = MmsaPickleOptions(path=str(tmp_path / "none.pkl"))
    broken = DataConfig(source="mmsa_pickle", options=options, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"none\.pkl: data\.options\.path: found nothing.*; set "):
        prepare(broken)
