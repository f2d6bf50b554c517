"""What README tells a newcomer to type is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(heading):
    """Fenced blocks of a section as `(language, text)`."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def shell(tmp_path):
    """Runs a command where README assumes one to stand, with a home of its own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_own_data_example(shell, tmp_path):
    (first, build), (second, train), (third, predict) = blocks("Your own data")
    assert (first, second, third) == ("python", "bash", "python")
    assert len([line for line in build.splitlines() if line.strip()]) <= 10
    shell("python", "-c", build)
    printed = shell("bash", "-euc", train)
    assert "finished at step 12" in printed
    assert "600 samples" in printed
    assert (tmp_path / "predictions.npz").is_file()
    shown = shell("python", "-c", f"{build}\n{predict}\nprint(prediction.probabilities.shape)")
    assert shown.strip() == "(600, 3)"


def test_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_map_names_what_exists():
    for path in re.findall(r"`((?:sft_jax|configs)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"^[A-Z_]+$", README, flags=re.MULTILINE) == []


def test_figures_exist():
    figures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert figures
    for figure in figures:
        assert (ROOT / figure).is_file(), figure
