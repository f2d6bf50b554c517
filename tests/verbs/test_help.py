"""Help of the commands, all of them in one process."""

import re
from pathlib import Path

import pytest
from command_worker import started

from sft_jax.__main__ import commands

ROOT = Path(__file__).parents[2]
WITH_CONFIG = ("benchmark", "cost", "diagram", "export", "plan", "prepare", "train")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with started(tmp_path_factory.mktemp("help")) as run:
        yield run


@pytest.mark.parametrize("name", commands())
def test_help_lists_the_flags_of_the_command(run, name):
    _, text = run(name, "--help")
    source = (ROOT / "sft_jax" / f"{name}.py").read_text()
    own = re.findall(r'(?:flags\.DEFINE_|cli\.define_)\w+\(\s*"(\w+)"', source)
    shared = [flag for flag in ("config", "workdir") if f"cli.define_{flag}(" in source]
    shared += ["data_dir", "data_path"] if "cli.define_data(" in source else []
    for flag in [*own, *shared]:
        assert re.search(rf"--(\[no\])?{flag}: ", text), flag
    if not own and not shared:
        assert name == "check_vectors"


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_help_says_how_settings_are_changed_and_listed(run, name):
    _, text = run(name, "--help")
    assert '--config.train.batch_size=64 --config.train.duration="20 epochs"' in text
    assert "--print_config lists all settings" in text
    # Though other flags that the command requires are missing.
    config = "--config=configs/synthetic.py"
    code, printed = run(name, "--print_config", config, "--config.train.seed=4")
    assert code == 0
    assert "--config.train.seed=4  (default 0)\n    Seed for parameters" in printed
    assert "--config.modalities.m0.pool=" in printed


def test_the_settings_of_a_study_are_those_that_it_varies(run):
    _, printed = run("sweep", "--print_config", "--config=configs/studies/fusion.py")
    assert "--config.data.options.folds=5" in printed
