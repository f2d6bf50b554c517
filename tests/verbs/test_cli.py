import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def cost(*arguments, config="configs/synthetic.py"):
    return subprocess.run(
        [sys.executable, "-m", "sft_jax.cost", f"--config={config}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--config.train.batchsize=3"], r"train.batchsize: .*did you mean 'batch_size'\?"),
        (["-config.train.sed", "4"], r"train.sed: given, but there is no such setting: .*'seed'\?"),
        (["--config.modalities.zz.k=3"], "modalities.zz.k: .*'zz' is none of m0, m1;"),
        (["--noconfig.train.sed"], r"train.sed: .*'seed'\?"),
        (["--config.train.seed.x=1"], "train.seed.x: .*'seed' is a single value"),
        (["--config.train.seed=1", "--config.modalities[0].k=3"], r"modalities\[0\].k: .*model"),
    ],
)
def test_a_setting_that_there_is_not_ends_without_a_traceback(given, words):
    done = cost(*given)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"^ConfigError: --config\.{words}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr


def test_a_modality_that_only_the_data_name_is_told_so():
    done = cost("--config.modalities.a.k=3", config="configs/arrays.py")
    assert done.returncode == 1
    assert "--config.modalities.a.k: " in done.stderr
    assert "'a' is named by the data alone; write a configuration" in done.stderr


def test_an_error_of_the_configuration_itself_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['entry']\n")
    done = cost("--config.train.seed=1", config=tmp_path / "mine.py")
    assert done.returncode == 1
    assert "in get_config" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "KeyError: 'entry'" in done.stderr


def test_a_setting_in_a_file_of_flags_is_named_too(tmp_path):
    (tmp_path / "flags").write_text("--config.train.sed=1\n")
    done = cost(f"--flagfile={tmp_path / 'flags'}")
    assert done.returncode == 1
    assert "ConfigError: --config.train.sed: given" in done.stderr
    assert "Traceback" not in done.stderr


VERB = """
import signal
from sft_jax import cli

def main():
    print("nobody reads this", flush=True)
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
cli.run(main)
"""


def test_a_verb_outlives_its_readers_and_ends_by_ctrl_c_with_one_line():
    process = subprocess.Popen(
        [sys.executable, "-c", VERB],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert (process.wait(timeout=100), errors) == (-signal.SIGINT, "\ninterrupted\n")
