import tracemalloc

import numpy as np
import pytest

import sft_jax.data.array_entries
from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.data.arrays import read_arrays
from sft_jax.data.records import to_arrays
from sft_jax.data.sources import open_source, prepare
from sft_jax.types import DataError

N, T = 10, 6


def entries():
    rng = np.random.default_rng(0)
    return {
        "video": rng.normal(size=(N, T, 3)),
        "words": rng.integers(1, 9, size=(N, 4)),
        "label": np.arange(N) % 3,
        "length/video": np.array([6, 5, 4, 3, 2, 1, 6, 6, 6, 0]),
        "mask/words": np.arange(4) < rng.integers(1, 5, size=(N, 1)),
        "id": np.array([f"clip{i}" for i in range(N)]),
        "group": np.array([f"person{i // 2}" for i in range(N)]),
    }


def save(path, content):
    if path.suffix == ".npz":
        np.savez(path, **content)
        return path
    for key, value in content.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / f"{key}.npy", value)
    return path


def config(path, data_dir, **options):
    options = ArraysOptions(path=str(path), **options)
    return DataConfig(source="arrays", options=options, data_dir=str(data_dir))


@pytest.mark.parametrize("name", ["x.npz", "x"])
def test_records_hold_what_was_saved(tmp_path, name):
    content = entries()
    table = read_arrays(save(tmp_path / name, content), require_label=True)
    assert [m.name for m in table.modalities] == ["video", "words"]
    video, words = table.modalities
    assert (video.length, video.feature_dim, video.kind) == (6, 3, "feature")
    largest = content["words"][content["mask/words"]].max()
    assert (words.length, words.feature_dim, words.kind) == (4, largest + 1, "token")
    assert len(table) == N
    for i, record in enumerate(table):
        real = np.arange(T) < content["length/video"][i]
        expected = np.where(real[:, None], content["video"][i].astype(np.float32), 0)
        np.testing.assert_array_equal(record["inputs"]["video"], expected)
        np.testing.assert_array_equal(record["mask"]["video"], real)
        mask = content["mask/words"][i]
        np.testing.assert_array_equal(
            record["inputs"]["words"], np.where(mask, content["words"][i], 0)
        )
        np.testing.assert_array_equal(record["mask"]["words"], mask)
        assert record["inputs"]["words"].dtype == np.int32
        assert (record["label"], record["id"]) == (i % 3, f"clip{i}")
        assert record["group"] == f"person{i // 2}"
    assert table.repairs == {}


def test_everything_optional_may_be_left_out(tmp_path):
    path = save(
        tmp_path / "x.npz", {"a": np.ones((3, 2, 1), np.float16), "label": np.zeros(3, int)}
    )
    table = read_arrays(path, require_label=True)
    assert table.id == table.group == ["0", "1", "2"]
    assert table.mask["a"].all()


def test_names_may_be_bytes_or_numbers(tmp_path):
    content = entries() | {"id": np.arange(N) * 2, "group": np.array([b"p"] * N)}
    table = read_arrays(save(tmp_path / "x.npz", content), require_label=True)
    assert table.id == [str(2 * i) for i in range(N)]
    assert set(table.group) == {"p"}


def test_values_not_finite_become_zero_and_are_counted(tmp_path):
    content = entries()
    content["video"][0, 0] = [np.nan, np.inf, -np.inf]
    content["video"][1, 1, 0] = 1e300  # beyond float32
    content["video"][2, 4:] = np.nan  # length 4: padding
    path = save(tmp_path / "x.npz", content)
    table = read_arrays(path, require_label=True)
    assert list(table.repairs.values()) == [4]
    assert np.isfinite(table.inputs["video"]).all()
    assert not table[0]["inputs"]["video"][0].any()
    info = prepare(config(path, tmp_path / "d"))
    assert info.repairs == table.repairs


def test_unlabelled_files_are_for_prediction_only(tmp_path):
    content = entries()
    del content["label"]
    path = save(tmp_path / "x.npz", content)
    table = read_arrays(path, require_label=False)
    assert table.label is None
    assert table[3]["label"] == 0
    with pytest.raises(DataError, match="expected an entry 'label' with the class"):
        prepare(config(path, tmp_path / "d"))


def changed(**changes):
    return lambda content: content | {key.replace("__", "/"): v for key, v in changes.items()}


BROKEN = {
    r"label: found entries .*only prediction reads": lambda c: (
        {k: v for k, v in c.items() if k != "label"}
    ),
    r"modalities: found 0 in entries label": lambda c: {"label": c["label"]},
    r"modalities: found 9": lambda c: c | {f"m{i}": c["video"] for i in range(7)},
    r"video: found float64 of shape \(10, 18\)": changed(
        video=np.zeros((N, 18)), length__video=np.ones(N, int)
    ),
    r"words: found float64 of shape \(10, 4\)": changed(words=np.zeros((N, 4))),
    r"video: found <U1 of shape": changed(video=np.full((N, T, 3), "a")),
    r"video: found float64 of shape \(10, 0, 3\)": changed(video=np.zeros((N, 0, 3))),
    r"words: found 9 samples, expected 10": lambda c: (
        c | {"words": c["words"][1:], "mask/words": c["mask/words"][1:]}
    ),
    r"label: found 9 samples, expected 10": lambda c: c | {"label": c["label"][1:]},
    r"id: found 9 samples": lambda c: c | {"id": c["id"][1:]},
    r"group: found 11 samples": changed(group=np.arange(N + 1)),
    r"mask/words: found bool of shape \(10, 5\), expected bool of shape \(10, 4\)": changed(
        mask__words=np.ones((N, 5), bool)
    ),
    r"mask/words: found int64 .*astype\(bool\)": changed(mask__words=np.ones((N, 4), int)),
    r"length/video: found float64 of shape": changed(length__video=np.ones(N)),
    r"length/video: found 7 for sample 0, expected 0 to 6": changed(length__video=np.full(N, 7)),
    r"length/video: found -1 for sample 9": changed(
        length__video=np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, -1])
    ),
    r"length/video: found both mask and length": changed(mask__video=np.ones((N, T), bool)),
    r"mask/vidio: found an entry of this name": changed(mask__vidio=np.ones((N, T), bool)),
    r"words: found id -2, expected ids from 0": changed(
        words=np.full((N, 4), -2), mask__words=np.ones((N, 4), bool)
    ),
    r"words: found id 2147483646, expected ids from 0 to below 10,000,000": changed(
        words=np.full((N, 4), 2**31 - 2)
    ),
    r"label: found int64 of shape \(10, 1\), .*save label\[:, 0\]": changed(
        label=np.zeros((N, 1), int)
    ),
    r"id: found float64": changed(id=np.zeros(N)),
    r"id: found 'a' twice": changed(id=np.array(["a"] * N)),
    r"no real time step in any modality of sample 9 \(1 such": changed(
        mask__words=np.arange(N)[:, None] * np.ones(4) < 9
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_name_key_found_expected_and_remedy(tmp_path, message):
    path = save(tmp_path / "x.npz", BROKEN[message](entries()))
    with pytest.raises(DataError, match=message) as error:
        prepare(config(path, tmp_path / "d"))
    assert str(path) in str(error.value)
    assert "expected" in str(error.value)
    assert ";" in str(error.value)
    assert not (tmp_path / "d").exists()


def test_objects_and_damage_are_refused(tmp_path):
    content = entries() | {"id": np.array([f"c{i}" for i in range(N)], dtype=object)}
    path = save(tmp_path / "x.npz", content)
    with pytest.raises(DataError, match=r"expected complete arrays.*dtype=str"):
        read_arrays(path, require_label=True)
    whole = save(path, entries()).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="expected complete arrays"):
            read_arrays(path, require_label=True)


@pytest.mark.parametrize("name", ["", "absent.npz", "x.csv"])
def test_missing_paths(tmp_path, name):
    (tmp_path / "x.csv").write_text("1,2")
    path = str(tmp_path / name) if name else ""
    with pytest.raises(DataError, match=r"expected an \.npz file or a directory of \.npy"):
        prepare(config(path, tmp_path / "d"))


def test_empty_directory(tmp_path):
    with pytest.raises(DataError, match="found entries none"):
        prepare(config(tmp_path, tmp_path / "d"))


def test_class_names(tmp_path):
    path = save(tmp_path / "x.npz", entries())
    with pytest.raises(
        DataError, match=r"label: found 3 classes, 0, 1, 2, expected numbers from 0 to 1"
    ):
        prepare(config(path, tmp_path / "d", class_names=("a", "b")))
    assert not (tmp_path / "d").exists()
    names = ("a", "b", "c", "d")
    assert prepare(config(path, tmp_path / "d", class_names=names)).class_names == names
    assert prepare(config(path, tmp_path / "d")).class_names == ("0", "1", "2")


def test_groups_stay_together_and_every_record_is_somewhere(tmp_path):
    path = save(tmp_path / "x.npz", entries())
    source = open_source(config(path, tmp_path / "d", split_seed=5))
    groups = {s: set(source.groups(s)) for s in ("train", "valid", "test")}
    assert [len(groups[s]) for s in ("train", "valid", "test")] == [3, 1, 1]
    assert set.union(*groups.values()) == {f"person{i}" for i in range(5)}
    ids = [name for s in groups for name in source.ids(s)]
    assert sorted(ids) == [f"clip{i}" for i in range(N)]
    for split in groups:
        assert source.info.groups[split] == source.info.split_units[split]
        assert set(source.info.groups[split]) == groups[split]


def test_without_groups_samples_are_split(tmp_path):
    content = {k: v for k, v in entries().items() if k != "group"}
    source = open_source(config(save(tmp_path / "x.npz", content), tmp_path / "d"))
    # At least one of each of the 3 classes.
    assert source.info.num_records == {"train": 4, "valid": 3, "test": 3}


def test_the_content_of_the_file_names_the_directory(tmp_path):
    content = entries()
    path = save(tmp_path / "x.npz", content)
    first = prepare(config(path, tmp_path / "d"))
    content["video"] += 1
    save(path, content)
    second = prepare(config(path, tmp_path / "d"))
    assert first.directory != second.directory
    moved = save(tmp_path / "elsewhere" / "x", content)
    third = prepare(config(moved, tmp_path / "d"))
    np.save(moved / "label.npy", np.zeros(N, int))
    fourth = prepare(config(moved, tmp_path / "d"))
    assert len({i.fingerprint for i in (first, second, third, fourth)}) == 4


def test_statistics_and_class_counts_by_a_slow_oracle(tmp_path):
    content = entries()
    source = open_source(config(save(tmp_path / "x.npz", content), tmp_path / "d"))
    rows = [int(name.removeprefix("clip")) for name in source.ids("train")]
    steps = []
    for row in rows:
        for t in range(content["length/video"][row]):
            steps.append(content["video"][row, t].astype(np.float32).astype(np.float64))
    found = source.info.statistics["video"]
    np.testing.assert_allclose(found.mean, np.mean(steps, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.std, np.std(steps, axis=0), rtol=1e-9)
    assert "words" not in source.info.statistics
    for split, counts in source.info.class_counts.items():
        labels = [record["label"] for record in source.split(split)]
        assert counts == tuple(labels.count(c) for c in range(3))


def test_records_become_the_arrays_that_they_are_read_from(tmp_path):
    table = read_arrays(save(tmp_path / "x.npz", entries()), require_label=True)
    arrays = to_arrays(table)
    assert set(arrays) == {"video", "words", "mask/video", "mask/words", "label", "id", "group"}
    again = read_arrays(save(tmp_path / "again.npz", arrays), require_label=True)
    assert again.modalities == table.modalities
    assert (again.id, again.group, again.label.tolist()) == (
        table.id,
        table.group,
        table.label.tolist(),
    )
    for one, other in zip(again, table, strict=True):
        for name in ("video", "words"):
            np.testing.assert_array_equal(one["inputs"][name], other["inputs"][name])
            np.testing.assert_array_equal(one["mask"][name], other["mask"][name])


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.ones((100, 50, 100))},
        {"a": np.ones((3000, 10, 30), np.float32)},
        {"a": np.full((1000, 500), 7, np.int64)},
        {name: np.ones((50, 50, 50)) for name in "abcd"},
        {"a": np.ones((100, 50, 100), np.float16), "mask/a": np.ones((100, 50), bool)},
    ],
    ids=["float64", "float32", "ids", "several", "float16"],
)
def test_an_archive_is_asked_for_the_memory_that_reading_takes(tmp_path, monkeypatch, content):
    asked = []
    module = sft_jax.data.array_entries
    monkeypatch.setattr(module, "check_fits", lambda size, *_: asked.append(size))
    path = save(tmp_path / "x.npz", content)
    tracemalloc.start()
    try:
        read_arrays(path, require_label=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Beside the arrays there are buffers of the zip reader and the names of the samples.
    assert 0.98 * asked[0] <= peak <= 1.05 * asked[0] + 1e6
