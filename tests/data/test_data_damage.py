import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from harm import flip, truncate

from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.data.builders import base, synthetic
from sft_jax.data.sources import Source, open_source, prepare
from sft_jax.types import DataError

OPTIONS = SyntheticOptions(
    lengths=(8, 6), feature_dims=(3, 2), num_train=30, num_valid=7, num_test=0
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return DataConfig(options=OPTIONS, data_dir=str(tmp_path_factory.mktemp("d")))


@pytest.fixture
def directory(config):
    """Prepared data, which are put back afterwards."""
    info = prepare(config)
    folder = Path(info.directory)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in kept.items():
        path.write_bytes(content)


def shards(directory):
    return sorted(directory.glob("*.array_record*"))


def test_sums_of_all_shards_and_of_what_is_said_of_them_are_kept(directory):
    listed = json.loads((directory / "checksums.json").read_text())["files"]
    assert list(listed) == [path.name for path in shards(directory)] + ["metadata.json"]
    assert len(listed) == 3


def test_statistics_of_the_same_size_are_damage(config, directory):
    """Inputs are normalized by them: a wrong digit would be another training."""
    path = directory / "metadata.json"
    content = path.read_text()
    start = re.search(r'"mean": \[\s*-?\d+\.', content).end()
    digit = "7" if content[start] != "7" else "8"
    path.write_text(content[:start] + digit + content[start + 1 :])
    with pytest.raises(
        DataError, match=rf"metadata.json: found other bytes.*remove {directory} to"
    ):
        open_source(config)


@pytest.mark.parametrize("harm", [flip, truncate, os.remove])
def test_a_damaged_shard_is_named_and_removing_the_folder_mends_it(config, directory, harm):
    whole = [record["inputs"]["m0"].tolist() for record in open_source(config).split("valid")]
    for path in shards(directory):
        content = path.read_bytes()
        harm(path)
        with pytest.raises(DataError, match=rf"{path.name}: .*remove {directory} to have it"):
            open_source(config)
        path.write_bytes(content)
    harm(shards(directory)[0])
    shutil.rmtree(directory)
    again = [record["inputs"]["m0"].tolist() for record in open_source(config).split("valid")]
    assert again == whole


def test_large_shards_are_measured(config, directory, monkeypatch):
    monkeypatch.setattr(base, "MAX_HASHED_BYTES", 10)
    path = shards(directory)[0]
    flip(path)
    open_source(config)
    truncate(path)
    with pytest.raises(DataError, match=r"found .* bytes, expected"):
        open_source(config)


def test_large_shards_are_not_summed(tmp_path, monkeypatch):
    config = DataConfig(options=OPTIONS, data_dir=str(tmp_path))
    monkeypatch.setattr(base, "MAX_HASHED_BYTES", 10)
    directory = Path(prepare(config).directory)
    paths = shards(directory)
    listed = json.loads((directory / "checksums.json").read_text())["files"]
    del listed["metadata.json"]
    assert listed == {path.name: {"bytes": path.stat().st_size} for path in paths}
    monkeypatch.undo()
    assert len(open_source(config).split("valid")) == 7
    truncate(paths[1])
    with pytest.raises(DataError, match=rf"{paths[1].name}: found .* bytes, expected"):
        open_source(config)


def test_steps_are_counted_beyond_32_bits(directory):
    (directory / "checksums.json").unlink()
    path = directory / "metadata.json"
    given = json.loads(path.read_text())
    given["statistics"]["m0"]["count"] = 3_000_000_000
    path.write_text(json.dumps(given))
    assert Source(directory).info.statistics["m0"].count == 3_000_000_000
    given["statistics"]["m0"]["count"] = 2**63
    path.write_text(json.dumps(given))
    with pytest.raises(DataError, match="statistics"):
        Source(directory)


def test_data_without_sums_open(config, directory):
    (directory / "checksums.json").unlink()
    assert len(open_source(config).split("train")) == 30


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"a": 1}', b"\xff", b"[" * 10**5])
def test_mangled_metadata_are_named(directory, content):
    (directory / "metadata.json").write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)metadata.json: .*remove the folder"):
        Source(directory)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("write() failed: No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_disk_that_is_full_while_preparing(tmp_path, monkeypatch, error):
    def full(builder):
        raise error

    monkeypatch.setattr(synthetic.Synthetic, "write", full)
    with pytest.raises(DataError, match=r"could not be written .*No space left.*data\.data_dir"):
        prepare(DataConfig(options=OPTIONS, data_dir=str(tmp_path)))
