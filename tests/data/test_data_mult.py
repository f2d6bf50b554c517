import math
import pickle

import numpy as np
import pytest

from sft_jax.config.data import DataConfig, MultPickleOptions
from sft_jax.config.run import Config
from sft_jax.config.task import TaskConfig
from sft_jax.data.builders.base import SourceBuilder
from sft_jax.data.builders.mult_pickle import MultPickle
from sft_jax.data.sources import open_source, open_source_of_run, prepare
from sft_jax.tasks import resolve
from sft_jax.types import ConfigError, DataError, Target

T = {"vision": 6, "audio": 5, "text": 4}
F = {"vision": 3, "audio": 2, "text": 5}
SIZES = {"train": 7, "valid": 3, "test": 4}
# Rounded half to even: -3 -> 0, -2.5 -> -2, -0.5 -> 0, 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3 -> 3.
LABELS = np.array([-3.0, -2.5, -0.5, 0.5, 1.5, 2.5, 3.0], np.float32)
CLASSES = [0, 1, 3, 3, 5, 5, 6]


def padded(rng, count, steps, width):
    """Zero rows in front, at least one real step, no zero row among the real ones."""
    values = np.zeros((count, steps, width), np.float32)
    for row in range(count):
        real = int(rng.integers(1, steps + 1))
        values[row, steps - real :] = rng.uniform(1, 2, (real, width))
    return values


def sentiment():
    """The layout of MOSI, its names in bytes; audio has one `-inf` in every split."""
    rng = np.random.default_rng(0)
    content = {}
    for split, count in SIZES.items():
        content[split] = {m: padded(rng, count, T[m], F[m]) for m in T}
        content[split]["audio"][0, -1, 0] = -np.inf
        content[split]["labels"] = LABELS[:count].reshape(-1, 1, 1).copy()
        names = [(f"{split}{i // 2}", f"{i}.5", f"{i + 1}.25") for i in range(count)]
        content[split]["id"] = np.array(names, "S")
    return content


def emotions():
    content = sentiment()
    for split, count in SIZES.items():
        shown = (np.arange(count)[:, None] >> np.arange(4)) & 1
        content[split]["labels"] = np.eye(2)[shown]
        del content[split]["id"]
    return content


# Sentiments that are the classes 0, 3, 6, and happy, sad, anger, surprise, disgust, fear.
INTENSITIES = np.array(
    [
        [-3.0, 0.0, 0.33, 0.0, 3.0, 0.0, 0.0],
        [0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [2.6, np.nan, 1.0, np.nan, 0.0, 1e-3, 2.0],
    ]
)
PRESENT = [
    [0, 1, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [np.nan, 1, np.nan, 0, 1, 1],
]


def intensities(shape):
    """Labels of some shape: with a sentiment in front if there are seven of them."""
    content = sentiment()
    for split, count in SIZES.items():
        rows = INTENSITIES[np.arange(count) % 3][:, -shape[-1] :]
        content[split]["labels"] = rows.reshape(count, *shape)
    return content


def save(tmp_path, content, protocol=4):
    path = tmp_path / "mosi_data_noalign.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def config(path, tmp_path, **options):
    options = MultPickleOptions(path=str(path), **options)
    return DataConfig(source="mult_pickle", options=options, data_dir=str(tmp_path / "d"))


def opened(tmp_path, content, **options):
    return open_source(config(save(tmp_path, content), tmp_path, **options))


def test_sentiment_by_hand(tmp_path):
    content = sentiment()
    source = opened(tmp_path, content)
    info = source.info
    assert [(m.name, m.length, m.feature_dim) for m in info.modalities] == [
        ("vision", 6, 3),
        ("audio", 5, 2),
        ("text", 4, 5),
    ]
    assert info.class_names == ("-3", "-2", "-1", "0", "1", "2", "3")
    assert info.class_values == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert (info.value_names, info.label_names) == (("sentiment",), ())
    assert info.num_records == SIZES
    assert info.repairs == {"audio: -inf set to 0": 3}
    assert source.values("train") == LABELS.tolist()
    assert [record["label"] for record in source.split("train")] == CLASSES
    assert source.ids("valid") == ["valid0_0.5_1.25", "valid0_1.5_2.25", "valid1_2.5_3.25"]
    assert source.groups("valid") == ["valid0", "valid0", "valid1"]
    for split, count in SIZES.items():
        for row in range(count):
            record = source.split(split)[row]
            for m in T:
                expected = np.where(np.isfinite(content[split][m]), content[split][m], 0)[row]
                np.testing.assert_array_equal(record["inputs"][m], expected)
                np.testing.assert_array_equal(record["mask"][m], [s.any() for s in expected])


def test_a_step_of_values_that_are_not_finite_alone_is_not_real(tmp_path):
    content = sentiment()
    content["train"]["vision"][1, -1] = [np.nan, np.inf, -np.inf]
    content["test"]["vision"][0, -1] = [np.nan, 1.0, 1e38]
    info = prepare(config(save(tmp_path, content), tmp_path))
    assert info.repairs == {
        "vision: -inf set to 0": 1,
        "vision: inf set to 0": 1,
        "vision: NaN set to 0": 2,
        "audio: -inf set to 0": 3,
    }
    record = open_source(config(save(tmp_path, content), tmp_path)).split("train")[1]
    assert not record["mask"]["vision"][-1]


@pytest.mark.parametrize(("emotion", "place"), [("neutral", 0), ("happy", 1), ("angry", 3)])
def test_emotions_by_hand(tmp_path, emotion, place):
    source = opened(tmp_path, emotions(), emotion=emotion)
    assert source.info.class_names == (f"not {emotion}", emotion)
    assert source.info.class_values == source.info.value_names == ()
    assert source.info.label_names == ("neutral", "happy", "sad", "angry")
    every = [[(i >> k) & 1 for k in range(4)] for i in range(7)]
    assert [record["labels"].tolist() for record in source.split("train")] == every
    expected = [(i >> place) & 1 for i in range(7)]
    assert [record["label"] for record in source.split("train")] == expected
    assert all(math.isnan(value) for value in source.values("test"))
    assert source.ids("valid") == source.groups("valid") == [f"valid{i:06d}" for i in range(3)]


@pytest.mark.parametrize("shape", [(1, 7), (7,), (1, 6), (6,)])
def test_intensities_by_hand(tmp_path, shape):
    source = opened(tmp_path, intensities(shape))
    info, records = source.info, list(source.split("train"))
    assert info.label_names == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    expected = [PRESENT[i % 3] for i in range(7)]
    np.testing.assert_array_equal([record["labels"] for record in records], expected)
    np.testing.assert_array_equal(source.targets("train", Target("labels", 6)), expected)
    if shape[-1] == 7:
        assert (info.num_classes, info.value_names) == (7, ("sentiment",))
        assert [record["label"] for record in records] == [(0, 3, 6)[i % 3] for i in range(7)]
        np.testing.assert_allclose(source.values("valid"), INTENSITIES[:, 0], rtol=1e-6)
        assert resolve(Config(), info).name == "classification"
    else:
        assert info.class_names == info.class_values == info.value_names == ()
        assert np.isnan(source.values("valid")).all()
        assert resolve(Config(), info).name == "multilabel"
        wanted = Config(task=TaskConfig(name="classification"))
        with pytest.raises(ConfigError, match=r"given 'classification'.*targets for multilabel,"):
            resolve(wanted, info)


def test_an_empty_split_of_intensities(tmp_path):
    content = intensities((1, 7))
    content["valid"] = {key: value[:0] for key, value in content["valid"].items()}
    assert prepare(config(save(tmp_path, content), tmp_path)).num_records["valid"] == 0


@pytest.mark.parametrize(("row", "column", "value"), [(1, 3, -0.5), (2, 6, np.inf)])
def test_intensities_that_are_none(tmp_path, row, column, value):
    content = intensities((1, 7))
    content["test"]["labels"][row, 0, column] = value
    name = ("anger", "fear")[row - 1]
    with pytest.raises(DataError) as caught:
        opened(tmp_path, content)
    message = str(caught.value)
    found = f"test/labels: found {value} of {name} for sample {row} (1 such samples), expected "
    assert found in message
    assert "intensities from 0 of happy, sad" in message
    assert "set unknown intensities to NaN" in message


def test_a_sentiment_before_intensities_must_be_known(tmp_path):
    content = intensities((1, 7))
    content["valid"]["labels"][1, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"valid/labels: found nan for sample 1 .*from -3 to 3; re"):
        opened(tmp_path, content)


def test_all_splits_have_labels_of_one_shape(tmp_path):
    content = intensities((1, 7))
    content["test"]["labels"] = content["test"]["labels"][:, :, 1:]
    with pytest.raises(DataError, match=r"test/labels: found float64 of shape \(4, 1, 6\), .*1, 7"):
        opened(tmp_path, content)


@pytest.mark.parametrize("make", [sentiment, emotions, lambda: intensities((6,))])
def test_labels_tell_the_sets_apart(tmp_path, make):
    """A data set that is asked for is the one in the file, or an error names both."""
    path = save(tmp_path, make())
    own = {"sentiment": ("mosei", "mosi"), "emotions": ("iemocap",)}
    own = own.get(make.__name__, ("mosei_emotions",))
    for given in ("mosei", "mosi", "iemocap", "mosei_emotions"):
        if given in own:
            prepare(config(path, tmp_path, dataset=given))
            continue
        expected = rf"data\.options\.dataset: found .*labels \[n, .*expected {given}; set .*'auto'"
        with pytest.raises(DataError, match=expected):
            prepare(config(path, tmp_path, dataset=given))


def test_a_run_keeps_the_records_of_an_earlier_version(tmp_path, monkeypatch):
    made = config(save(tmp_path, emotions()), tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(MultPickle, "VERSION", SourceBuilder.VERSION)
        first = prepare(made)
    assert open_source_of_run(made, first.fingerprint).info == first
    assert prepare(made).fingerprint != first.fingerprint


FORMS = {
    "names in text": lambda c: {
        s: {**e, "id": [tuple(n.decode() for n in row) for row in e["id"].tolist()]}
        for s, e in c.items()
    },
    "names of objects": lambda c: {s: {**e, "id": e["id"].astype(object)} for s, e in c.items()},
    "keys in bytes": lambda c: {
        s.encode(): {k.encode(): v for k, v in e.items()} for s, e in c.items()
    },
    "lists of arrays": lambda c: {
        s: {k: list(v) if k in T else v for k, v in e.items()} for s, e in c.items()
    },
    "nested lists": lambda c: {
        s: {k: v if k == "id" else v.tolist() for k, v in e.items()} for s, e in c.items()
    },
    "float64": lambda c: {
        s: {k: v if k == "id" else v.astype(np.float64) for k, v in e.items()} for s, e in c.items()
    },
    "other byte order": lambda c: {
        s: {k: v.astype(">f4") if k in T else v for k, v in e.items()} for s, e in c.items()
    },
    "columns first": lambda c: {
        s: {k: np.asfortranarray(v) if k in T else v for k, v in e.items()} for s, e in c.items()
    },
}


def assert_same_records(found, expected):
    for split in SIZES:
        assert len(found.split(split)) == len(expected.split(split))
        for a, b in zip(found.split(split), expected.split(split), strict=True):
            np.testing.assert_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_hold_the_same_records(tmp_path, form):
    expected = opened(tmp_path, sentiment())
    found = opened(tmp_path, FORMS[form](sentiment()))
    assert found.info.directory != expected.info.directory
    assert_same_records(found, expected)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_pickles_of_python_2(tmp_path, protocol, python2):
    expected = opened(tmp_path, sentiment())
    path = tmp_path / "old.pkl"
    path.write_bytes(python2(sentiment(), protocol))
    assert_same_records(open_source(config(path, tmp_path)), expected)


def test_contents_decide_and_not_the_path(tmp_path):
    first = prepare(config(save(tmp_path, sentiment()), tmp_path))
    (tmp_path / "other").mkdir()
    moved = save(tmp_path, sentiment()).rename(tmp_path / "other" / "mosi_data_noalign.pkl")
    assert prepare(config(moved, tmp_path)).directory == first.directory
    assert prepare(config(moved, tmp_path, emotion="sad")).directory != first.directory
    changed = sentiment()
    changed["test"]["text"][0, -1, 0] += 1
    assert prepare(config(save(tmp_path, changed), tmp_path)).directory != first.directory


def test_paths_may_be_relative_or_start_at_home(tmp_path, monkeypatch):
    expected = prepare(config(save(tmp_path, sentiment()), tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("mosi_data_noalign.pkl", "~/mosi_data_noalign.pkl"):
        assert prepare(config(path, tmp_path)).fingerprint == expected.fingerprint


def test_samples_without_anything_real_are_left_out_and_told(tmp_path):
    content = sentiment()
    for m in T:
        content["train"][m][2] = 0
    content["train"]["audio"][2, -1, 0] = np.nan
    source = opened(tmp_path, content)
    assert source.info.repairs["samples without a real step in any modality, left out"] == 1
    assert [record["label"] for record in source.split("train")] == [0, 1, 3, 5, 5, 6]
    assert "train1_2.5_3.25" not in source.ids("train")


def test_names_that_come_again_are_numbered_and_told(tmp_path):
    content = sentiment()
    content["train"]["id"][1] = content["train"]["id"][0]
    content["test"]["id"] = content["test"]["id"].astype("S9")
    content["test"]["id"][0] = content["train"]["id"][0]
    source = opened(tmp_path, content)
    assert source.info.repairs["names of samples that came again, numbered"] == 2
    assert source.ids("train")[:2] == ["train0_0.5_1.25", "train0_0.5_1.25#2"]
    assert source.ids("test")[0] == "train0_0.5_1.25#3"


def test_an_empty_split_to_choose_or_test_by_is_no_error(tmp_path):
    content = sentiment()
    content["valid"] = {key: value[:0] for key, value in content["valid"].items()}
    assert prepare(config(save(tmp_path, content), tmp_path)).num_records["valid"] == 0


# --- broken files ---------------------------------------------------------------------------------


def without(*keys):
    def change(content):
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content

    return change


def put(split, key, make):
    def change(content):
        content[split][key] = make(content[split][key])
        return content

    return change


def label(value):
    def make(labels):
        labels[3] = value
        return labels

    return make


class RunsCode:
    def __reduce__(self):
        return print, ("ran",)


def ragged(values):
    box = np.empty(len(values), object)
    box[:] = [value[: 1 + i % 2] for i, value in enumerate(values)]
    return box


AGAIN = "get the file again"
# What is wrong -> how it comes about; key, what was found, remedy.
BROKEN = {
    "missing split": (without("valid"), ["file: found train, test without valid", AGAIN]),
    "missing key": (
        without("test", "audio"),
        ["test: found vision, text, labels, id without audio", "check data.source"],
    ),
    "missing labels": (without("train", "labels"), ["train: found", "without labels", AGAIN]),
    "no mapping": (lambda c: [c], ["file: found a list of 1", "mapping with train", AGAIN]),
    "split is no mapping": (
        lambda c: {**c, "test": np.zeros(3)},
        ["test: found float64 of shape (3,)", "mapping with vision", AGAIN],
    ),
    "wrong rank": (
        put("train", "text", lambda x: x[0]),
        ["train/text: found float32 of shape (4, 5)", "[n, t, f]", "save it as one array"],
    ),
    "objects": (
        put("train", "vision", ragged),
        ["train/vision: found object of shape (7,)", "numbers", "save it as one array"],
    ),
    "lists of different lengths": (
        put("valid", "vision", lambda x: [x[0], x[1, :2], x[2]]),
        ["valid/vision: found a list of 3", "and others", "padded to the longest"],
    ),
    "text for numbers": (
        put("train", "audio", lambda x: x.astype(str)),
        ["train/audio: found <U", "numbers of shape [n, t, f]", "save it"],
    ),
    "modalities disagree": (
        put("test", "audio", lambda x: x[1:]),
        ["test/audio: found 3 samples", "expected 4, as test/vision has", AGAIN],
    ),
    "splits disagree": (
        put("valid", "text", lambda x: x[:, 1:]),
        ["valid/text: found float32 of shape (3, 3, 5)", "[n, 4, 5] as in train", "pad all"],
    ),
    "labels disagree": (
        put("train", "labels", lambda x: x[1:]),
        ["train/labels: found float32 of shape (6, 1, 1)", "(7, 1, 1)", AGAIN],
    ),
    "labels of another rank": (
        put("train", "labels", lambda x: x[:, 0, 0]),
        ["train/labels: found float32 of shape (7,)", "[n, 1, 1]", "made for MulT"],
    ),
    "label above 3": (
        put("valid", "labels", lambda x: x + 6.5),
        ["valid/labels: found 3.5 for sample 0 (3 such samples)", "-3 to 3", "remove these"],
    ),
    "label NaN": (
        put("train", "labels", label(np.nan)),
        ["train/labels: found nan for sample 3 (1 such samples)", "-3 to 3", "remove these"],
    ),
    "too few names": (
        put("test", "id", lambda x: x[1:]),
        ["test/id: found 3 names", "expected 4", "correct or remove"],
    ),
    "empty name": (
        put("test", "id", lambda x: [*x[1:].tolist(), b""]),
        ["test/id: found 4 names, 1 of them empty", "one for every", "correct or remove"],
    ),
    "names in parts of parts": (
        put("test", "id", lambda x: np.zeros((4, 2, 2))),
        ["test/id: found float64 of shape (4, 2, 2)", "4 names", "correct or remove"],
    ),
    "no names": (put("test", "id", lambda x: {}), ["test/id: found dict", "4 names", "remove it"]),
    "empty training split": (
        lambda c: {**c, "train": {key: value[:0] for key, value in c["train"].items()}},
        ["train/vision: found float32 of shape (0, 6, 3)", "not empty", "at least one sample"],
    ),
    "nothing real to train on": (
        lambda c: {**c, "train": {**c["train"], **{m: np.zeros_like(c["train"][m]) for m in T}}},
        ["train: found 7 samples without a real step", "at least one sample", AGAIN],
    ),
    "code": (
        lambda c: {**c, "more": RunsCode()},
        ["the pickle asks for builtins.print", "nothing of it was run", "save it again"],
    ),
    "another set": (
        lambda c: emotions(),
        ["data.options.dataset: found iemocap (labels [n, 4, 2]", "expected mosi", "to 'auto'"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_told_by_file_key_and_remedy(tmp_path, what, capsys):
    change, words = BROKEN[what]
    path = save(tmp_path, change(sentiment()))
    with pytest.raises(ValueError, match="expected") as caught:
        prepare(config(path, tmp_path, dataset="mosi"))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert [word for word in words if word not in message] == []
    assert not list((tmp_path / "d").rglob("*array_record*"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [0, 1, 100, 2000, -1])
def test_files_that_are_cut_off(tmp_path, size):
    path = save(tmp_path, sentiment())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"noalign\.pkl: found .*a complete pickle; .*get it again"
    ):
        prepare(config(path, tmp_path))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_text("<html>Sign in to download</html>")
    with pytest.raises(ValueError, match=r"x\.pkl: found .*a complete pickle; .*get it again"):
        prepare(config(path, tmp_path))
    expected = "data.options.path: found {}.*mosei_senti_data_noalign.pkl; set data.options.path"
    for given, found in (("none.pkl", "nothing at '/"), ("", "no path"), (str(tmp_path), "a dir")):
        with pytest.raises(ValueError, match=expected.format(found)):
            prepare(config(given, tmp_path))


def test_labels_of_emotions_are_ones_in_pairs(tmp_path):
    content = emotions()
    content["test"]["labels"][2, 3] = 1
    with pytest.raises(ValueError, match=r"test/labels: found .* for sample 2, expected a single"):
        prepare(config(save(tmp_path, content), tmp_path))


@pytest.mark.parametrize(
    ("widths", "given", "found"),
    [((20, 5, 300), "mosei", "mosi"), ((35, 74, 300), "mosi", "mosei"), (None, "iemocap", "senti")],
)
def test_widths_tell_the_sets_apart(tmp_path, widths, given, found):
    content = sentiment()
    for entries in content.values():
        for m, width in zip(T, widths or (), strict=False):
            entries[m] = np.ones((*entries[m].shape[:2], width), np.float32)
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=f"data.options.dataset: found {found}.*expected {given}"):
        prepare(config(path, tmp_path, dataset=given))
    prepare(config(path, tmp_path, dataset=found if widths else "mosei"))


@pytest.mark.parametrize("name", ["dev", "val", "VALID", b"dev"])
def test_other_names_of_splits_are_taken(tmp_path, name):
    content = sentiment()
    content[name] = content.pop("valid")
    source = opened(tmp_path, content)
    assert source.info.num_records == SIZES
    content["validation"] = content[name]
    with pytest.raises(DataError, match=r"file: found train, test, .*expected one split valid"):
        opened(tmp_path, content)
