import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sft_jax.data.sources
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.data.builders import base, synthetic
from sft_jax.data.records import DataInfo
from sft_jax.data.sources import Source, open_source, open_source_of_run, prepare
from sft_jax.types import DataError

OPTIONS = SyntheticOptions(
    lengths=(8, 6), feature_dims=(3, 2), num_train=30, num_valid=7, num_test=0
)


def config(tmp_path, options=OPTIONS):
    return DataConfig(options=options, data_dir=str(tmp_path / "d"))


def test_metadata_survives_reopening(tmp_path):
    info = prepare(config(tmp_path))
    source = Source(Path(info.directory))
    assert source.info == info
    assert info.source == "synthetic"
    assert info.class_names == ("0", "1", "2", "3")
    assert [(m.name, m.length, m.feature_dim, m.kind) for m in info.modalities] == [
        ("m0", 8, 3, "feature"),
        ("m1", 6, 2, "feature"),
    ]
    assert info.num_records == {"train": 30, "valid": 7, "test": 0}
    assert info.class_values == ()
    assert np.isnan(source.values("valid")).tolist() == [True] * 7
    assert info.options["noise"] == 0.5
    assert info.options["lengths"] == [8, 6]
    assert len(info.fingerprint) == 64
    assert info.fingerprint[:12] in info.directory
    again = DataInfo.from_json(json.loads(json.dumps(info.to_json())), info.directory)
    assert again == info


def test_a_directory_may_be_moved(tmp_path):
    info = prepare(config(tmp_path))
    moved = tmp_path / "moved" / Path(info.directory).name
    moved.parent.mkdir()
    Path(info.directory).rename(moved)
    source = Source(moved)
    assert source.info.directory == str(moved)
    assert len(source.split("train")) == 30


def test_statistics_and_counts_by_a_slow_oracle(tmp_path):
    source = open_source(config(tmp_path))
    records = [synthetic.sample(OPTIONS, 0, i) for i in range(30)]
    for name in ("m0", "m1"):
        steps = [
            step.astype(np.float64)
            for record in records
            for step, real in zip(record["inputs"][name], record["mask"][name], strict=True)
            if real
        ]
        found = source.info.statistics[name]
        np.testing.assert_allclose(found.mean, np.mean(steps, axis=0), rtol=1e-9)
        np.testing.assert_allclose(found.std, np.std(steps, axis=0), rtol=1e-9)
        np.testing.assert_allclose(found.rms, np.sqrt(np.mean(np.square(steps))), rtol=1e-9)
    labels = [record["label"] for record in records]
    assert source.info.class_counts["train"] == tuple(labels.count(c) for c in range(4))
    assert source.info.class_counts["test"] == (0, 0, 0, 0)
    assert source.info.groups["train"] == tuple(f"train{i:06d}" for i in range(30))
    assert source.ids("train") == source.groups("train") == list(source.info.groups["train"])


def test_prepared_once_and_again_only_by_force(tmp_path, monkeypatch):
    drawn = []
    real = synthetic.sample
    monkeypatch.setattr(synthetic, "sample", lambda *a: drawn.append(a) or real(*a))
    first = prepare(config(tmp_path))
    # Run-time type checks may draw some records more than once.
    assert len(set(drawn)) == 37
    drawn.clear()
    assert prepare(config(tmp_path)) == first
    assert len(open_source(config(tmp_path)).split("train")) == 30
    assert not drawn
    assert prepare(config(tmp_path), force=True) == first
    assert len(set(drawn)) == 37
    assert not list(Path(first.directory).parent.glob("removed*"))


@pytest.mark.parametrize(
    "change",
    [
        {"noise": 0.25},
        {"seed": 1},
        {"num_train": 31},
        {"num_valid": 8},
        {"num_test": 1},
        {"num_classes": 5},
        {"min_length": 0.25},
        {"missing_rate": 0.5},
        {"lengths": (8, 7)},
        {"feature_dims": (3, 3)},
    ],
)
def test_every_option_names_the_directory(tmp_path, change):
    base_options = {"lengths": (8, 6), "feature_dims": (3, 2), "num_train": 30, "num_valid": 7}
    options = SyntheticOptions(**{**base_options, "num_test": 0, **change})
    builders = [synthetic.Synthetic(o, tmp_path) for o in (OPTIONS, options)]
    assert builders[0].directory != builders[1].directory
    assert builders[0].fingerprint != builders[1].fingerprint


def test_a_new_version_is_prepared_anew(tmp_path, monkeypatch):
    first = prepare(config(tmp_path))
    monkeypatch.setattr(synthetic.Synthetic, "VERSION", type(base.SourceBuilder.VERSION)("2.0.0"))
    second = prepare(config(tmp_path))
    assert second.directory != first.directory
    assert second.fingerprint != first.fingerprint


def test_a_run_keeps_the_records_of_an_earlier_version(tmp_path, monkeypatch):
    first = prepare(config(tmp_path))
    monkeypatch.setattr(synthetic.Synthetic, "VERSION", type(base.SourceBuilder.VERSION)("2.0.0"))
    assert open_source_of_run(config(tmp_path), first.fingerprint).info == first
    second = prepare(config(tmp_path))
    assert open_source_of_run(config(tmp_path), first.fingerprint).info == first
    assert open_source_of_run(config(tmp_path), second.fingerprint).info == second
    # Neither another file nor other options are taken for the run's.
    other = dataclasses.replace(OPTIONS, noise=0.25)
    assert open_source_of_run(config(tmp_path, other), first.fingerprint).info != first
    monkeypatch.setattr(synthetic.Synthetic, "source_sha256", lambda _: "another")
    assert open_source_of_run(config(tmp_path), first.fingerprint).info.source_sha256 == "another"


def test_order_is_kept_over_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SHARD_BYTES", 4 * (8 * 3 + 6 * 2) * 4)
    info = prepare(config(tmp_path))
    assert len(list(Path(info.directory).glob("*train*array_record*"))) > 5
    source = Source(Path(info.directory))
    assert source.ids("train") == [f"train{i:06d}" for i in range(30)]
    assert source.ids("valid") == [f"valid{i:06d}" for i in range(7)]
    assert source.info.num_records["train"] == 30


def test_large_splits_are_read_on_demand(tmp_path, monkeypatch):
    kept = open_source(config(tmp_path)).split("train")
    assert isinstance(kept, tuple)
    record_bytes = 4 * (8 * 3 + 6 * 2) + 8 + 6
    monkeypatch.setattr(sft_jax.data.sources, "MAX_CACHED_BYTES", 30 * record_bytes)
    source = open_source(config(tmp_path))
    assert source.info.record_bytes == record_bytes
    records = source.split("train")
    assert not isinstance(records, tuple)
    assert isinstance(source.split("valid"), tuple)
    assert len(records) == 30
    np.testing.assert_equal(list(records), list(kept))
    np.testing.assert_equal(records[-1], kept[-1])
    with pytest.raises(IndexError):
        records[30]
    np.testing.assert_equal(list(records), list(kept))


def test_unknown_and_empty_splits(tmp_path):
    source = open_source(config(tmp_path))
    with pytest.raises(DataError, match="split 'test' is empty, expected one of train, valid; "):
        source.split("test")
    with pytest.raises(DataError, match="split 'dev' is unknown, expected one of train, valid; "):
        source.split("dev")


def test_an_exception_while_writing_leaves_nothing(tmp_path, monkeypatch):
    real = synthetic.sample

    def fails(options, split, index):
        if (split, index) == (1, 3):
            raise KeyboardInterrupt
        return real(options, split, index)

    monkeypatch.setattr(synthetic, "sample", fails)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path))
    assert not list((tmp_path / "d").rglob("*array_record*"))
    monkeypatch.setattr(synthetic, "sample", real)
    assert prepare(config(tmp_path)).num_records["valid"] == 7


SCRIPT = """
import os, signal, sys
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.data.builders import synthetic
from sft_jax.data.sources import open_source
real = synthetic.sample
def killed(options, split, index):
    if (split, index) == (1, 3) and sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(options, split, index)
synthetic.sample = killed
options = SyntheticOptions(
    lengths=(8, 6), feature_dims=(3, 2), num_train=30, num_valid=7, num_test=0
)
print(len(open_source(DataConfig(options=options, data_dir=sys.argv[1])).split("valid")))
"""


def run(tmp_path, how):
    root = Path(sft_jax.data.sources.__file__).parents[2]
    # TensorFlow is in reach, and whoever imports it stops.
    fake = tmp_path / "site" / "tensorflow" / "__init__.py"
    fake.parent.mkdir(parents=True, exist_ok=True)
    fake.write_text("raise SystemExit('tensorflow was imported')")
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "d"), how],
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path / 'site'}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_killed_preparation_does_not_open_and_is_made_good(tmp_path):
    killed = run(tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL
    left = list((tmp_path / "d").rglob("*array_record*"))
    assert left  # it did write something
    assert not list((tmp_path / "d").rglob(str(base.SourceBuilder.VERSION)))
    good = run(tmp_path, "finish")
    assert good.returncode == 0, good.stderr
    # Quiet, TensorFlow-free and without a warning.
    assert (good.stdout, good.stderr) == ("7\n", "")


def test_the_loser_of_a_race_uses_the_winners_files(tmp_path, monkeypatch):
    real = synthetic.sample
    winner = []

    def overtaken(options, split, index):
        if (split, index) == (0, 5) and not winner:
            winner.append(None)
            winner[0] = prepare(config(tmp_path))
        return real(options, split, index)

    monkeypatch.setattr(synthetic, "sample", overtaken)
    assert prepare(config(tmp_path)) == winner[0]
    assert not list((tmp_path / "d").rglob("incomplete*"))


def test_other_failures_of_the_file_system_are_not_hidden(tmp_path):
    (tmp_path / "d").write_text("a file where the directory should be")
    with pytest.raises(
        DataError, match=r"could not be written .*(Not a directory|File exists).*data\.data_dir"
    ):
        prepare(config(tmp_path))
