import h5py
import numpy as np
import pytest

from sft_jax.config.data import DataConfig, VggsoundHdf5Options
from sft_jax.data.sources import open_source, prepare
from sft_jax.types import ConfigError

SHAPES = {"rgb": (3, 4), "spect": (7, 2), "flow": (3, 4)}
# Not in the order of their names, since labels must be.
NAMES = ("tapping guitar", "airplane", "dog barking")
CLASS = {"airplane": 0, "dog barking": 1, "tapping guitar": 2}


def content_of(count, seed):
    rng = np.random.default_rng(seed)
    content = {m: rng.normal(size=(count, *shape)).astype("f4") for m, shape in SHAPES.items()}
    return content | {"class_name": np.array([NAMES[i % 3].encode() for i in range(count)])}


def both():
    return {"train": content_of(30, 0), "test": content_of(7, 1)}


def save(tmp_path, content):
    for role, entries in content.items():
        with h5py.File(tmp_path / f"vgg_{role}.h5py", "w") as file:
            for key, values in entries.items():
                if isinstance(values, dict):
                    file.create_group(key)
                else:
                    file[key] = values


def config(tmp_path, **options):
    paths = {f"{role}_path": str(tmp_path / f"vgg_{role}.h5py") for role in ("train", "test")}
    options = VggsoundHdf5Options(**{**paths, **options})
    return DataConfig(source="vggsound_hdf5", options=options, data_dir=str(tmp_path / "d"))


def opened(tmp_path, content, **options):
    save(tmp_path, content)
    return open_source(config(tmp_path, **options))


def test_records_by_hand(tmp_path):
    content = both()
    source = opened(tmp_path, content)
    info = source.info
    assert info.class_names == ("airplane", "dog barking", "tapping guitar")
    assert info.class_values == ()
    assert [(m.name, m.length, m.feature_dim) for m in info.modalities] == [
        ("rgb", 3, 4),
        ("spect", 7, 2),
        ("flow", 3, 4),
    ]
    # A fifth of ten samples of each class.
    assert info.num_records == {"train": 24, "valid": 6, "test": 7}
    assert info.class_counts == {"train": (8, 8, 8), "valid": (2, 2, 2), "test": (2, 2, 3)}
    assert info.repairs == {}
    drawn = source.ids("train") + source.ids("valid")
    assert sorted(drawn) == [f"train{row:06d}" for row in range(30)]
    assert source.ids("test") == source.groups("test") == [f"test{row:06d}" for row in range(7)]
    assert np.isnan(source.values("test")).all()
    for split in ("train", "valid", "test"):
        entries = content["test" if split == "test" else "train"]
        for record in source.split(split):
            row = int(record["id"][-6:])
            assert record["label"] == CLASS[NAMES[row % 3]]
            for m in SHAPES:
                np.testing.assert_array_equal(record["inputs"][m], entries[m][row])
                assert record["mask"][m].all()


def test_a_part_of_the_modalities_in_another_order(tmp_path):
    content = both()
    del content["train"]["rgb"], content["test"]["rgb"]
    source = opened(tmp_path, content, modalities=("flow", "spect"))
    assert [m.name for m in source.info.modalities] == ["flow", "spect"]
    record = source.split("test")[3]
    np.testing.assert_array_equal(record["inputs"]["flow"], content["test"]["flow"][3])
    assert set(record["inputs"]) == {"flow", "spect"}


def test_values_that_are_not_finite_are_counted_once(tmp_path):
    content = both()
    content["train"]["spect"][4, 2] = -np.inf
    content["test"]["spect"][6, 0, 1] = -np.inf
    content["test"]["rgb"][6, 0] = np.nan
    source = opened(tmp_path, content)
    assert source.info.repairs == {"rgb: NaN set to 0": 4, "spect: -inf set to 0": 3}
    assert not source.split("test")[6]["inputs"]["rgb"][0].any()


def test_names_of_any_length_and_of_older_files(tmp_path):
    expected = opened(tmp_path, both())
    content = both()
    for entries in content.values():
        entries["class_name"] = np.array(entries["class_name"].tolist(), object)
    found = opened(tmp_path, content)
    assert found.info.class_names == expected.info.class_names
    assert found.info.class_counts == expected.info.class_counts


def test_contents_and_options_decide_and_not_the_path(tmp_path):
    first = opened(tmp_path, both()).info
    other = tmp_path / "other"
    other.mkdir()
    for role in ("train", "test"):
        (tmp_path / f"vgg_{role}.h5py").rename(other / f"vgg_{role}.h5py")
    paths = {f"{role}_path": str(other / f"vgg_{role}.h5py") for role in ("train", "test")}
    assert prepare(config(tmp_path, **paths)).directory == first.directory
    changes = ({"split_seed": 1}, {"valid_fraction": 0.1}, {"modalities": ("rgb",)})
    for change in changes:
        assert prepare(config(tmp_path, **paths, **change)).fingerprint != first.fingerprint
    with h5py.File(other / "vgg_test.h5py", "a") as file:
        file["rgb"][0, 0, 0] = 9.0
    assert prepare(config(tmp_path, **paths)).fingerprint != first.fingerprint


def test_rows_are_read_one_by_one(tmp_path, monkeypatch):
    save(tmp_path, both())
    asked = []
    real = h5py.Dataset.__getitem__

    def watched(self, args, **kwargs):
        asked.append((self.name, args))
        return real(self, args, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    prepare(config(tmp_path))
    assert {name for name, args in asked if not isinstance(args, int)} == {"/class_name"}
    assert {args for name, args in asked if name == "/spect"} == set(range(30))


def test_no_validation_split_when_none_is_asked_for(tmp_path):
    save(tmp_path, both())
    counts = prepare(config(tmp_path, valid_fraction=0.0)).num_records
    assert counts == {"train": 30, "valid": 0, "test": 7}


def put(role, key, make):
    def change(content):
        content[role][key] = make(content[role][key])
        return content

    return change


def drop(role, key):
    def change(content):
        del content[role][key]
        return content

    return change


def cut(role, size):
    return role, lambda whole: whole[:size]


# What is wrong -> how it comes about; the file that is named; key, found, remedy.
BROKEN = {
    "missing key": (
        drop("test", "spect"),
        "test",
        ["spect: found a file of class_name, flow, rgb", "modalities"],
    ),
    "missing names": (
        drop("train", "class_name"),
        "train",
        ["class_name: found a file of flow", "a dataset class_name", "get the file again"],
    ),
    "group for features": (
        lambda c: {**c, "train": {**c["train"], "rgb": {}}},
        "train",
        ["rgb: found a group", "a dataset rgb", "get the file again"],
    ),
    "wrong rank": (
        put("train", "rgb", lambda x: x[0]),
        "train",
        ["rgb: found float32 of shape (3, 4)", "numbers of rank 3", "get the file again"],
    ),
    "text for features": (
        put("train", "rgb", lambda x: np.full(x.shape, b"x")),
        "train",
        ["rgb: found |S1 of shape (30, 3, 4)", "numbers of rank 3", "get the file again"],
    ),
    "numbers for names": (
        put("test", "class_name", lambda x: np.arange(len(x))),
        "test",
        ["class_name: found int64 of shape (7,)", "text of rank 1", "get the file again"],
    ),
    "samples disagree": (
        put("train", "flow", lambda x: x[1:]),
        "train",
        ["flow: found 29 samples", "expected 30, as rgb has", "get the file again"],
    ),
    "names disagree": (
        put("test", "class_name", lambda x: x[1:]),
        "test",
        ["class_name: found 6 samples", "expected 7, as rgb has", "get the file again"],
    ),
    "shapes disagree": (
        put("test", "rgb", lambda x: x[:, :2]),
        "test",
        ["rgb: found float32 of shape (7, 2, 4)", "[n, 3, 4], as in", "two files of one set"],
    ),
    "unknown test class": (
        put("test", "class_name", lambda x: np.array([*x[1:].tolist(), b"zebra"])),
        "test",
        ["class_name: found class 'zebra'", "the 3 classes of", "two files of one set"],
    ),
    "empty training split": (
        lambda c: {**c, "train": {k: v[:0] for k, v in c["train"].items()}},
        "train",
        ["rgb: found float32 of shape (0, 3, 4)", "samples to train on", "at least one"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_told_by_file_key_and_remedy(tmp_path, what):
    change, role, words = BROKEN[what]
    save(tmp_path, change(both()))
    with pytest.raises(ValueError, match="expected") as caught:
        prepare(config(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / f'vgg_{role}.h5py'}: ")
    assert [word for word in words if word not in message] == []
    assert not list((tmp_path / "d").rglob("*array_record*"))


@pytest.mark.parametrize("size", [0, 10, 1000, -100])
def test_files_that_are_cut_off(tmp_path, size):
    save(tmp_path, both())
    path = tmp_path / "vgg_train.h5py"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"vgg_train\.h5py: found .*HDF5 file; .*get it again"):
        prepare(config(tmp_path))


def test_a_damaged_row_names_itself(tmp_path):
    content = both()
    save(tmp_path, content)
    path = tmp_path / "vgg_train.h5py"
    with h5py.File(path, "a") as file:
        del file["rgb"]
        values = content["train"]["rgb"]
        file.create_dataset("rgb", data=values, chunks=(1, 3, 4), fletcher32=True)
        offset = file["rgb"].id.get_chunk_info(11).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=r"train\.h5py: found .*expected row 11 of rgb; .*again"):
        prepare(config(tmp_path))


def test_files_that_are_none_or_the_same(tmp_path):
    save(tmp_path, both())
    with pytest.raises(ValueError, match=r"train_path: found nothing at .*h5py; set data\.options"):
        prepare(config(tmp_path, train_path="none.h5py"))
    with pytest.raises(ValueError, match=r"test_path: found no path.*vgg_test\.h5py; set data\.o"):
        prepare(config(tmp_path, test_path=""))
    same = str(tmp_path / "vgg_train.h5py")
    with pytest.raises(ValueError, match=r"test_path: found the training file again.*; set it"):
        prepare(config(tmp_path, test_path=same))
    with pytest.raises(ValueError, match=r"30 samples, all of them held out.*; lower data\.option"):
        prepare(config(tmp_path, valid_fraction=1.0))


@pytest.mark.parametrize("given", [(), ("rgb", "rgb"), ("video",)])
def test_modalities_are_those_of_the_files(given):
    with pytest.raises(ConfigError, match=r"data\.options\.modalities: given .*rgb, spect, flow"):
        VggsoundHdf5Options(modalities=given)
