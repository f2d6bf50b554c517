import h5py
import numpy as np
import pytest

from sft_jax.config.data import OPTIONS, DataConfig
from sft_jax.data import fake
from sft_jax.data.fake import FAKES, describe_files, next_command, write_fake
from sft_jax.data.sources import open_source
from sft_jax.files.mapped_pickles import map_pickle
from sft_jax.types import ConfigError, Target

SOURCES = {
    "av": "arrays",
    "vggsound10": "vggsound_hdf5",
    "vggsound100": "vggsound_hdf5",
    "mosei": "mult_pickle",
    "mosei_emotions": "mult_pickle",
    "mosi": "mult_pickle",
    "iemocap": "mult_pickle",
    "mmsa": "mmsa_pickle",
}
# The true widths, and lengths that are quick.
SHORT = {
    kind: {m: (4, width) for m, (_, width) in fake.shapes.items()} for kind, fake in FAKES.items()
}
SHORT["av"]["video"] = (4, 8 * 8 * 3)  # of a small frame
MULT_SIZE = 160


def opened(tmp_path, kind, size=MULT_SIZE):
    paths = write_fake(kind, tmp_path, size, 0, SHORT[kind])
    given = dict(zip(FAKES[kind].files, map(str, paths), strict=True))
    options = OPTIONS[SOURCES[kind]](**given)
    config = DataConfig(source=SOURCES[kind], options=options, data_dir=str(tmp_path / "d"))
    return open_source(config)


def features(source, split):
    """Means over real steps of all modalities, `[n, f]`, and a column of ones."""
    rows = [
        np.concatenate([r["inputs"][m][r["mask"][m]].mean(0) for m in r["inputs"]])
        for r in source.split(split)
    ]
    return np.column_stack([rows, np.ones(len(rows))])


def labels(source, split):
    return np.array([record["label"] for record in source.split(split)])


def predicted(source, target):
    """Ridge regression of `target(split)`, trained on one split and applied to another."""
    train = features(source, "train")
    ridge = train.T @ train + 10 * np.eye(train.shape[1])
    weights = np.linalg.solve(ridge, train.T @ target("train"))
    return features(source, "test") @ weights


@pytest.mark.parametrize("kind", ["mosei", "mosei_emotions", "mosi", "mmsa"])
def test_sentiment_can_be_learned_from_one_split_and_told_in_another(tmp_path, kind):
    source = opened(tmp_path, kind)
    assert source.info.num_records == {"train": 160, "valid": 40, "test": 40}
    truth = np.array(source.values("test"))
    found = predicted(source, lambda split: np.array(source.values(split)))
    assert np.corrcoef(found, truth)[0, 1] > 0.9
    constant = np.abs(truth - np.median(source.values("train"))).mean()
    assert np.abs(truth - found).mean() < constant / 2
    assert len(set(labels(source, "train"))) == 7
    assert len(source.info.groups["train"]) == 40


@pytest.mark.parametrize("kind", ["iemocap", "mosei_emotions"])
def test_each_of_several_emotions_can_be_learned(tmp_path, kind):
    source = opened(tmp_path, kind)
    target = Target("labels", len(source.info.label_names))
    truth = source.targets("test", target)
    found = predicted(source, lambda split: source.targets(split, target))
    assert ((found > 0.5) == truth).mean(axis=0).min() > 0.85
    assert 0 < truth.mean(axis=0).min() <= truth.mean(axis=0).max() < 1


def test_emotions_and_sounds_can_be_learned(tmp_path):
    for kind, size, least in (("iemocap", 160, 0.9), ("vggsound10", 60, 0.9), ("av", 40, 0.9)):
        source = opened(tmp_path, kind, size)
        train, test = features(source, "train"), features(source, "test")
        known = labels(source, "train")
        centre = np.array([train[known == c].mean(0) for c in range(source.info.num_classes)])
        nearest = ((test[:, None] - centre) ** 2).sum(2).argmin(1)
        assert (nearest == labels(source, "test")).mean() >= least


@pytest.mark.parametrize("kind", FAKES)
def test_the_true_shapes_stand_in_the_table(kind):
    """Lengths and widths of the files' makers, of SFT's paper for VGGSound and MOSEI."""
    vgg = {"rgb": (38, 1024), "spect": (1200, 128), "flow": (38, 1024)}
    mosi = {"vision": (500, 20), "audio": (375, 5)}
    expected = {
        "av": {"audio": (800, 128), "video": (16, 150_528)},
        "vggsound10": vgg,
        "vggsound100": vgg,
        "mosei": {"vision": (500, 35), "audio": (500, 74), "text": (50, 300)},
        "mosei_emotions": {"vision": (500, 35), "audio": (500, 74), "text": (50, 300)},
        "mosi": {**mosi, "text": (50, 300)},
        "iemocap": {"vision": (500, 35), "audio": (400, 74), "text": (20, 300)},
        "mmsa": {**mosi, "text": (50, 768)},
    }
    assert FAKES[kind].shapes == expected[kind]


def test_layouts_and_flaws_of_the_files(tmp_path):
    (path,) = write_fake("mosei", tmp_path, 8)
    assert path.name == "mosei_senti_data_noalign.pkl"
    train = map_pickle(path)["train"]
    assert train["audio"].shape == (8, 500, 74)
    assert train["labels"].shape == (8, 1, 1)
    assert np.asarray(train["id"]).shape == (8, 3)
    assert np.asarray(train["id"]).dtype.kind == "S"
    audio = train["audio"][:]
    assert np.isneginf(audio).sum() == 2
    real = audio.any(2)
    # Left-padded: once real, always real.
    assert (np.diff(real.astype(int), axis=1) >= 0).all()
    assert not real.all()

    (path,) = write_fake("mmsa", tmp_path, 8)
    assert path.name == "unaligned_50.pkl"
    train = map_pickle(path)["train"]
    assert isinstance(train["audio_lengths"], list)
    real = train["audio"][:].any(2)
    np.testing.assert_array_equal(real, np.arange(375) < np.array(train["audio_lengths"])[:, None])

    (path,) = write_fake("iemocap", tmp_path, 8)
    assert path.name == "iemocap_data_noalign.pkl"
    train = map_pickle(path)["train"]
    assert train["labels"].shape == (8, 4, 2)
    assert "id" not in train

    (path,) = write_fake("mosei_emotions", tmp_path, 8, 0, SHORT["mosei_emotions"])
    assert path.name == "mosei_emotions_data_noalign.pkl"
    given = map_pickle(path)["train"]["labels"]
    assert given.shape == (8, 1, 7)
    assert (given[:, :, 1:] >= 0).all()

    (path,) = write_fake("av", tmp_path, 10, 0, SHORT["av"])
    files = {file.relative_to(path).as_posix(): np.load(file) for file in path.rglob("*.npy")}
    assert {name: (x.shape, x.dtype) for name, x in files.items()} == {
        "audio.npy": ((17, 4, 128), np.float32),
        "video.npy": ((17, 4, 192), np.uint8),
        "label.npy": ((17,), np.int64),
        "length/audio.npy": ((17,), np.int64),
        "length/video.npy": ((17,), np.int64),
    }
    assert len(set(files["label.npy"])) == 10
    for m in ("audio", "video"):
        real = files[f"{m}.npy"].any(2)
        np.testing.assert_array_equal(real, np.arange(4) < files[f"length/{m}.npy"][:, None])
        assert not real.all()

    paths = write_fake("vggsound10", tmp_path, 10)
    assert [path.name for path in paths] == ["vgg_train.h5py", "vgg_test.h5py"]
    with h5py.File(paths[0]) as file:
        assert file["spect"].shape == (10, 1200, 128)
        assert file["class_name"].dtype.kind == "S"
        assert len(set(file["class_name"])) == 10


def test_the_seed_decides(tmp_path):
    def written(folder, seed):
        (path,) = write_fake("mosi", tmp_path / folder, 6, seed, SHORT["mosi"])
        return path.read_bytes()

    first = written("a", 1)
    assert first == written("b", 1)
    assert first != written("c", 2)


def test_every_class_needs_a_sample(tmp_path):
    with pytest.raises(
        ConfigError, match=r"given 99 for vggsound100, expected at least 100, .*; r"
    ):
        write_fake("vggsound100", tmp_path, 99)


@pytest.mark.parametrize("kind", FAKES)
def test_an_interruption_leaves_no_file_that_looks_whole(tmp_path, monkeypatch, kind):
    calls = iter(range(4))

    def interrupted(rng, shape, offset):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return np.zeros(shape, np.float32)

    monkeypatch.setattr(fake, "_noise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_fake(kind, tmp_path, 0, 0, SHORT[kind])
    assert list(tmp_path.iterdir()) == []


def test_files_are_never_written_over(tmp_path):
    (tmp_path / "vgg_test.h5py").write_text("the real one")
    with pytest.raises(ConfigError, match=r"where vgg_test\.h5py is already, .*; choose another"):
        write_fake("vggsound10", tmp_path, 10, 0, SHORT["vggsound10"])
    assert (tmp_path / "vgg_test.h5py").read_text() == "the real one"
    assert not (tmp_path / "vgg_train.h5py").exists()


@pytest.mark.parametrize("kind", ["av", "mosi", "vggsound100"])
def test_files_and_the_next_command_are_told(tmp_path, kind):
    paths = write_fake(kind, tmp_path, 100, 0, SHORT[kind])
    lines = describe_files(paths).splitlines()
    assert [line.split(" (")[0].split()[-1] for line in lines] == list(map(str, paths))
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    total = sum(float(line.split("(")[1].removesuffix(" MB)")) for line in lines)
    assert total == pytest.approx(sum(path.stat().st_size for path in found) / 1e6, abs=len(lines))
    told = next_command(kind, paths).split(" \\\n    ")
    assert told == [
        "python -m sft_jax.prepare",
        f"--config=configs/{FAKES[kind].config}.py",
        *(
            f"--config.data.options.{option}={path}"
            for option, path in zip(FAKES[kind].files, paths, strict=True)
        ),
    ]
