import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import sft_jax.prepare
from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.data.sources import prepare

CONFIG = """
from sft_jax.config.run import Config
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.io import config_dict

def get_config():
    options = SyntheticOptions(num_train=20, num_valid=5, num_test=5)
    return config_dict(Config(data=DataConfig(options=options)))
"""


def run(tmp_path, *overrides, config=CONFIG):
    (tmp_path / "x.py").write_text(config)
    root = Path(sft_jax.prepare.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", "sft_jax.prepare", f"--config={tmp_path / 'x.py'}", *overrides],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prepares_and_tells(tmp_path):
    done = run(tmp_path, f"--config.data.data_dir={tmp_path}", "--config.data.options.num_valid=4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "source       synthetic"
    assert "modality     m0: 48 steps, 6 features" in lines
    assert any(line.startswith("train        20 records: 0 ") for line in lines)
    assert any(line.startswith("valid        4 records: ") for line in lines)
    directory = Path(lines[-1].split()[-1])
    assert (directory / "dataset_info.json").is_file()


def test_unknown_settings_and_arguments_are_refused(tmp_path):
    unknown = run(tmp_path, "--config.data.options.nosie=1")
    assert unknown.returncode != 0
    assert "nosie" in unknown.stderr
    extra = run(tmp_path, "more")
    assert extra.returncode != 0
    assert "given ['more'], expected flags alone" in extra.stdout + extra.stderr


def test_repairs_groups_and_tokens_are_told(tmp_path):
    video = np.ones((6, 2, 3))
    video[1, 0, 0] = np.nan
    np.savez(
        tmp_path / "x.npz",
        video=video,
        words=np.full((6, 4), 7),
        label=np.arange(6) % 2,
        group=np.array(["p", "q", "r", "p", "q", "r"]),
    )
    options = ArraysOptions(path=str(tmp_path / "x.npz"), class_names=("no", "yes"))
    info = prepare(DataConfig(source="arrays", options=options, data_dir=str(tmp_path / "d")))
    text = sft_jax.prepare.describe(info)
    assert "modality     words: 4 steps, 8 ids" in text
    assert "train        2 records: no 1, yes 1" in text
    assert "1 groups; split over 1: " in text
    assert "repaired     video: values that were not finite, set to 0: 1" in text
    assert info.source_sha256 in text


FAKE_CONFIG = """
from sft_jax.config.run import Config
from sft_jax.config.io import config_dict
from sft_jax.config.data import DataConfig, MultPickleOptions

def get_config():
    options = MultPickleOptions(path="files/mosi_data_noalign.pkl")
    return config_dict(Config(data=DataConfig(source="mult_pickle", options=options)))
"""


def test_synthetic_files_are_written_and_prepared_by_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--fake=mosi", "--fake_dir=files", "--fake_size=5", "--config.data.data_dir=d"]
    done = run(tmp_path, *flags, config=FAKE_CONFIG)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"synthetic    {tmp_path}/files/mosi_data_noalign.pkl (")
    assert "values       -3, -2, -1, 0, 1, 2, 3" in lines
    assert any(line.startswith("train        5 records: -3 ") for line in lines)
    assert "repaired     audio: -inf set to 0: 4" in lines


def test_many_classes_are_told_together(tmp_path):
    label = np.repeat(np.arange(21), 2)
    np.savez(tmp_path / "x.npz", a=np.ones((42, 2, 3)), label=np.append(label[:-1], 0))
    options = ArraysOptions(path=str(tmp_path / "x.npz"), valid_fraction=0.0, test_fraction=0.0)
    info = prepare(DataConfig(source="arrays", options=options, data_dir=str(tmp_path / "d")))
    text = sft_jax.prepare.describe(info)
    assert "train        42 records: 21 classes of 1 to 3 records" in text


def test_the_page_on_data_shows_what_the_command_prints(tmp_path):
    root = Path(sft_jax.prepare.__file__).parents[1]
    page = (root / "docs" / "data.md").read_text()
    command, *shown = page.split("```console\n$ ")[1].split("\n```")[0].splitlines()
    shutil.copytree(root / "configs", tmp_path / "configs")
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == len(shown)
    for line, pattern in zip(printed, shown, strict=True):
        parts = map(re.escape, pattern.split("..."))
        assert re.fullmatch(".*".join(parts), line)
