"""What is built from the sources installs elsewhere, brings `configs/`, and trains and predicts."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from doc_pages import ROOT

from sft_jax.config.io import find, load
from sft_jax.types import ConfigError

SHIPPED = ("sft_jax", "configs")
ABOUT = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
BUILD = "from setuptools import build_meta; print(build_meta.build_{}('{}'))"


def build(what, source, target):
    """Builds as pip does, in a process of its own, and returns the file."""
    command = [sys.executable, "-c", BUILD.format(what, target)]
    made = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return target / made.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a source archive, as installers do that find no wheel."""
    home = tmp_path_factory.mktemp("dist")
    source = home / "source"
    for folder in SHIPPED:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for name in ABOUT:
        shutil.copy(ROOT / name, source)
    archive = build("sdist", source, home)
    with tarfile.open(archive) as opened:
        opened.extractall(home, filter="data")
    return build("wheel", home / archive.name.removesuffix(".tar.gz"), home)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Python with the wheel installed and, of this environment, what it depends on."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    bin_folder = "Scripts" if os.name == "nt" else "bin"
    installed = home / bin_folder / "python"
    command = [sys.executable, "-m", "pip", "--python", str(installed), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", "--quiet", str(wheel)], check=True)
    at = sysconfig.get_path("purelib", vars={"base": str(home)})
    # A path of a .pth file is taken as it is: the .pth files in it, such as that of a checkout
    # installed as editable, are not read.
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    Path(at, "dependencies.pth").write_text("\n".join(paths))
    return installed


def test_wheel_holds_the_package_and_the_configurations_alone(wheel):
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    expected = {f"sft_jax/{name}" if name.startswith("configs/") else name for name in files}
    held = zipfile.ZipFile(wheel).namelist()
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert "sft_jax/py.typed" in held


def test_trains_and_predicts_away_from_the_sources(python, tmp_path, rng, quick_flags):
    def run(*arguments):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        given = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_flags}
        done = subprocess.run(
            [python, *arguments],
            cwd=tmp_path,
            env=environment | given,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import sft_jax; print(sft_jax.__file__)").strip()
    assert Path(where).is_relative_to(python.parents[1])
    overrides = ("--config.train.duration=4 steps", "--config.train.eval_every=4 steps")
    config = "--config=configs/synthetic.py"
    trained = run("-m", "sft_jax.train", config, "--workdir=run", *overrides)
    assert "finished at step 4" in trained
    modalities = load(ROOT / "configs" / "synthetic.py").modalities
    arrays = {
        m.name: rng.normal(size=(2, m.length, m.feature_dim)).astype(np.float32) for m in modalities
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    run("-m", "sft_jax.predict", "--workdir=run", "--input=mine.npz", "--output=scores.npz")
    with np.load(tmp_path / "scores.npz") as scores:
        np.testing.assert_allclose(scores["probabilities"].sum(axis=1), np.ones(2), rtol=1e-5)


def test_configurations_of_the_package_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("configs/synthetic.py").samefile(ROOT / "configs" / "synthetic.py")
    own = tmp_path / "configs" / "synthetic.py"
    own.parent.mkdir()
    own.write_text("")
    assert find("configs/synthetic.py").samefile(own)
    with pytest.raises(ConfigError, match=r"synthetic\.py: no get_config in it"):
        load("configs/synthetic.py")
    # Only what is asked for as configs/... is looked for in the package.
    for missing in ("synthetic.py", "configs/other.py", "other/configs/synthetic.py"):
        with pytest.raises(ConfigError, match=r"not found.*configs/studies/fusion\.py.*check"):
            find(missing)
