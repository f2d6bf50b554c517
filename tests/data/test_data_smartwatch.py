import sys

import numpy as np
import pytest

from sft_jax.config.data import DataConfig, SmartwatchOptions
from sft_jax.data.builders.smartwatch_exercises import (
    SmartwatchExercises,
    split_subjects,
    split_time,
    window_starts,
)
from sft_jax.data.sources import open_source, prepare
from sft_jax.types import DataError

OPTIONS = SmartwatchOptions(window=20, step=7, test_subjects=2, valid_subjects=1, split_seed=3)


def config(tmp_path, options=OPTIONS):
    return DataConfig(source="smartwatch_exercises", options=options, data_dir=str(tmp_path / "d"))


def test_windows_equal_slices_of_the_recordings(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    source = open_source(config(tmp_path))
    assert "seglearn" not in sys.modules
    seen = {}
    for split in ("train", "valid", "test"):
        for record in source.split(split):
            seen[record["id"]] = split
            group, start = record["id"].rsplit("_t", 1)
            assert record["group"] == group
            subject, side, name, number = group.split("_")
            i, start = int(number.removeprefix("rec")), int(start)
            assert subject == f"subject{watch['subject'][i]:02d}"
            assert side == ("left", "right")[int(watch["side"][i])]
            assert name == watch["y_labels"][watch["y"][i]]
            assert record["label"] == watch["y"][i]
            cut = watch["X"][i][start : start + 20].astype(np.float32)
            for modality, columns in (("accelerometer", cut[:, :3]), ("gyroscope", cut[:, 3:])):
                real = record["mask"][modality]
                np.testing.assert_array_equal(real, np.arange(20) < len(cut))
                np.testing.assert_array_equal(record["inputs"][modality][real], columns)
                assert not record["inputs"][modality][~real].any()
    # Recordings of 40, 55 and 9 samples: 3, 6 and 1 windows; six subjects of one each.
    assert len(seen) == 6 * (3 + 6 + 1)
    assert "subject01_left_PEN_rec000_t00014" in seen
    assert sum(source.info.num_records.values()) == len(seen)


def test_subjects_are_disjoint_and_drawn_before_windowing(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    order = np.random.default_rng(3).permutation([1, 2, 3, 4, 5, 6]).tolist()
    expected = {"test": order[:2], "valid": order[2:3], "train": order[3:]}
    for window, step in ((20, 7), (30, 30)):
        options = SmartwatchOptions(
            window=window, step=step, test_subjects=2, valid_subjects=1, split_seed=3
        )
        source = open_source(config(tmp_path, options))
        for split, subjects in expected.items():
            found = {int(name[7:9]) for name in source.ids(split)}
            assert found == set(subjects)
            units = source.info.split_units[split]
            assert units == tuple(f"subject{s:02d}" for s in sorted(subjects))


def test_splits_depend_on_the_seed_alone():
    splits = [
        split_subjects(list(range(1, 11)), SmartwatchOptions(split_seed=seed), "x")
        for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]
    assert sorted(sum(splits[0].values(), ())) == list(range(1, 11))
    assert [len(splits[0][name]) for name in ("train", "valid", "test")] == [6, 2, 2]


@pytest.mark.parametrize(("folds", "valid"), [(5, 2), (5, 0), (3, 1), (4, 3)])
def test_every_subject_is_tested_in_one_fold(folds, valid):
    subjects, tested, before = list(range(1, 11)), [], None
    for fold in range(folds):
        options = SmartwatchOptions(folds=folds, fold=fold, valid_subjects=valid, split_seed=4)
        parts = split_subjects(subjects, options, "x")
        assert sorted(sum(parts.values(), ())) == subjects  # disjoint, and all of them
        assert len(parts["valid"]) == valid
        tested.append(parts["test"])
        if fold and valid == len(parts["test"]):
            assert before == parts["test"]  # the next fold's subjects were for validation
        before = parts["valid"]
    assert sorted(sum(tested, ())) == subjects
    assert max(map(len, tested)) - min(map(len, tested)) <= 1


def test_stretches_of_time_by_hand():
    def stretches(fold, valid_subjects=2, length=103):
        options = SmartwatchOptions(
            folds=5, fold=fold, held_out="time", valid_subjects=valid_subjects
        )
        return split_time(length, options)

    # Edges at 0, 20, 41, 61, 82, 103.
    assert stretches(1) == {"train": [(0, 20), (61, 103)], "valid": [(41, 61)], "test": [(20, 41)]}
    assert stretches(4) == {"train": [(20, 82)], "valid": [(0, 20)], "test": [(82, 103)]}
    assert stretches(4, 0) == {"train": [(0, 82)], "valid": [], "test": [(82, 103)]}


def test_windows_stay_in_their_stretch_of_time(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    options = SmartwatchOptions(window=20, step=7, folds=5, fold=2, held_out="time")
    source = open_source(config(tmp_path, options))
    lengths = {i: len(samples) for i, samples in enumerate(watch["X"])}
    seen = {split: set() for split in ("train", "valid", "test")}
    for split, places in seen.items():
        for record in source.split(split):
            group, start = record["id"].rsplit("_t", 1)
            number = int(group.rsplit("rec", 1)[1])
            real = int(record["mask"]["gyroscope"].sum())
            stretches = split_time(lengths[number], options)[split]
            stop = int(start) + real
            assert any(low <= int(start) and stop <= high for low, high in stretches)
            places |= {(number, t) for t in range(int(start), stop)}
    assert not seen["train"] & seen["test"]
    assert not seen["valid"] & seen["test"]
    assert not seen["train"] & seen["valid"]
    assert {number for number, _ in seen["test"]} == set(lengths)  # every recording is tested
    assert len(source.info.split_units["test"]) == 6


def test_folds_are_prepared_apart_and_one_draw_as_ever(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    found = [
        prepare(config(tmp_path, SmartwatchOptions(folds=6, fold=fold, valid_subjects=1)))
        for fold in (0, 1)
    ]
    assert found[0].fingerprint != found[1].fingerprint
    assert "subjects0of6" in found[0].directory
    assert "subjects1of6" in found[1].directory
    assert found[0].split_units["valid"] == found[1].split_units["test"]
    # Folders that were prepared before there were folds stay valid.
    assert set(SmartwatchOptions().__dict__) - set(
        SmartwatchExercises(SmartwatchOptions(), tmp_path).identity()
    ) == {"folds", "fold", "held_out"}


@pytest.mark.parametrize(
    ("length", "window", "step", "expected"),
    [
        (10, 4, 3, [0, 3, 6]),
        (10, 4, 4, [0, 4]),
        (10, 10, 5, [0]),
        (9, 10, 5, [0]),
        (11, 10, 1, [0, 1]),
    ],
)
def test_window_starts_by_hand(length, window, step, expected):
    assert list(window_starts(length, window, step)) == expected


def test_statistics_are_of_training_windows_only(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    source = open_source(config(tmp_path))
    steps = [r["inputs"]["gyroscope"][r["mask"]["gyroscope"]] for r in source.split("train")]
    real = np.concatenate(steps).astype(np.float64)
    found = source.info.statistics["gyroscope"]
    np.testing.assert_allclose(found.mean, real.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.std, real.std(0), rtol=1e-9)
    np.testing.assert_allclose(found.rms, np.sqrt((real**2).mean()), rtol=1e-9)
    assert found.count == len(real)


def test_a_changed_file_is_prepared_anew(tmp_path, install_seglearn, watch):
    install_seglearn(watch)
    first = prepare(config(tmp_path))
    watch["X"][0] = watch["X"][0] + 1
    install_seglearn(watch)
    second = prepare(config(tmp_path))
    assert first.directory != second.directory
    assert first.fingerprint != second.fingerprint
    assert first.source_sha256 != second.source_sha256


def broken(**changes):
    return lambda watch: watch | changes


BROKEN = {
    "a dict with keys": lambda watch: {k: v for k, v in watch.items() if k != "side"},
    r"found \['\(1, 2\)', 'a'\], expected a dict with keys": lambda watch: {"a": 1, (1, 2): 3},
    r"TypeError .*expected recordings as they are documented": broken(X_labels=3),
    r"X_labels: found \['a'\]": broken(X_labels=["a"]),
    r"y: found 7, expected whole numbers from 0 to 6": lambda w: w | {"y": w["y"] * 0 + 7},
    r"side: found 0\.5": lambda w: w | {"side": w["side"] * 0 + 0.5},
    r"subject: found -1": lambda w: w | {"subject": w["subject"] * 0 - 1},
    r"y: found int64 of rank 2": lambda w: w | {"y": w["y"][:, None]},
    r"lengths \{'X': 18, 'y': 17": lambda w: w | {"y": w["y"][:-1]},
    r"X\[1\]: found float64 of shape \(40, 5\)": lambda w: (
        w | {"X": [w["X"][0], np.zeros((40, 5)), *w["X"][2:]]}
    ),
    r"X\[0\]: found float64 of shape \(3,\)": lambda w: w | {"X": [np.zeros(3), *w["X"][1:]]},
    r"X\[2\]: found NaN or infinity": lambda w: (
        w | {"X": [*w["X"][:2], np.full((30, 6), np.nan), *w["X"][3:]]}
    ),
    r"found 3 subjects, expected more than the 3": lambda w: (
        w | {"subject": (w["subject"] - 1) % 3 + 1}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_name_what_is_wrong(tmp_path, install_seglearn, watch, message):
    install_seglearn(BROKEN[message](watch))
    with pytest.raises(DataError, match=message) as error:
        prepare(config(tmp_path))
    assert "watch_dataset.npy" in str(error.value)
    assert not list((tmp_path).rglob("dataset_info.json"))


def test_absent_package_or_file_says_how_to_install(tmp_path, install_seglearn, monkeypatch):
    install_seglearn()
    with pytest.raises(
        DataError, match=r"without data/watch_dataset.npy.*pip install 'sft_jax\[demo"
    ):
        prepare(config(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"found no seglearn.*pip install 'sft_jax\[demo\]'"):
        prepare(config(tmp_path))


def test_the_distributed_file(tmp_path):
    """The file of the `demo` extra, which the test extra installs: sizes as published."""
    options = SmartwatchOptions(window=500, step=500)
    source = open_source(config(tmp_path, options))
    info = source.info
    assert info.class_names == ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    assert sum(len(groups) for groups in info.groups.values()) == 140
    assert [len(info.split_units[s]) for s in ("train", "valid", "test")] == [6, 2, 2]
    first = source.split("train")[0]
    assert first["inputs"]["accelerometer"].shape == (500, 3)
    # At rest an accelerometer in g reads 1.
    assert 0.5 < info.statistics["accelerometer"].rms * np.sqrt(3) < 2
