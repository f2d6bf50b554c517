import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import sft_jax.prepare
from sft_jax.config import ArraysOptions, DataConfig
from sft_jax.data.sources import prepare

CONFIG = """
from sft_jax.config import Config, DataConfig, SyntheticOptions
from sft_jax.config_io import config_dict

def get_config():
    options = SyntheticOptions(num_train=20, num_valid=5, num_test=5)
    return config_dict(Config(data=DataConfig(options=options)))
"""


def run(tmp_path, *overrides):
    (tmp_path / "x.py").write_text(CONFIG)
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
