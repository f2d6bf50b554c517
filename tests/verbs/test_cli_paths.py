"""Flags that hold paths, of all verbs: `~` is expanded, and places to write to are made first."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from sft_jax import cli
from sft_jax.__main__ import commands
from sft_jax.training.predictor import Prediction
from sft_jax.types import ConfigError

ROOT = Path(__file__).parents[2]
VERBS = list(commands())
# Flags whose text is no path, or is one that `config.io.find` looks for.
NO_PATHS = {
    *("config", "configs", "compare", "values", "measure", "topology", "attention"),
    *("shape", "strides"),
    *("settings", "folds", "seeds", "split", "metric", "coordinator"),
}
OUTPUTS = {"output", "json", "plot", "profile", "fake_dir", "compilation_cache"}


@pytest.fixture(scope="module")
def verb_flags():
    """The flags of every verb: `{verb: {name: flag}}`."""
    found = {}
    # Other tests may have imported a verb, and no flag is defined twice.
    others = {
        flag.name: flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith(("sft_jax", "jaxtyping"))
        for flag in defined
    }
    for name in others:
        delattr(flags.FLAGS, name)
    for verb in VERBS:
        before = set(flags.FLAGS)
        runpy.run_path(str(ROOT / "sft_jax" / f"{verb}.py"), run_name=verb)
        found[verb] = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - before}
        for name in found[verb]:
            delattr(flags.FLAGS, name)
    for name, flag in others.items():
        flags.FLAGS[name] = flag
    return found


def of_type(verb_flags, parser):
    return [
        (f"{verb} --{name}", flag)
        for verb, own in verb_flags.items()
        for name, flag in own.items()
        if isinstance(flag.parser, parser)
    ]


def test_every_flag_with_text_is_known_to_be_a_path_or_not(verb_flags):
    assert len(VERBS) > 10
    for verb, own in verb_flags.items():
        for name, flag in own.items():
            if name.startswith("config.") or flag.flag_type() in ("bool", "int", "string enum"):
                continue
            is_path = isinstance(flag.parser, cli.PathParser | cli.PathListParser)
            assert is_path != (name in NO_PATHS), f"{verb} --{name}: {flag.flag_type()}"
            assert isinstance(flag.parser, cli.OutputParser) == (name in OUTPUTS), f"{verb} {name}"


def test_every_path_is_absolute_with_home_expanded(verb_flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = of_type(verb_flags, cli.PathParser)
    assert len(found) > 10
    for _, flag in found:
        assert flag.parser.parse("~/x") == flag.parser.parse("x") == tmp_path / "x"
        assert flag.parser.parse("") is None
    for _, flag in of_type(verb_flags, cli.PathListParser):
        assert flag.parser.parse("~/x,/y,z") == [tmp_path / "x", Path("/y"), tmp_path / "z"]
    with pytest.raises(ValueError, match="known home folder"):
        cli.to_path("~nobody-of-this-name/x")


def test_every_output_makes_its_folder_or_is_refused(verb_flags, tmp_path):
    (tmp_path / "blocked").write_text("a file")
    for number, (name, flag) in enumerate(of_type(verb_flags, cli.OutputParser)):
        suffix = next(iter(flag.parser.suffixes), "")
        path = tmp_path / f"new{number}" / "a" / f"x{suffix}"
        flag.parser.prepare(name, path)
        assert path.parent.is_dir(), name
        with pytest.raises(ConfigError, match=r"--.*cannot be used \(.*choose another"):
            flag.parser.prepare(name, tmp_path / "blocked" / f"x{suffix}")


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    parser = cli.OutputParser((".png", ".svg"), folder=False)
    for name in ("x", "x.jpg", "x.PNG"):
        with pytest.raises(ConfigError, match=r"--plot: given .*expected .* in \.png, \.svg"):
            parser.prepare("plot", tmp_path / name)
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ConfigError, match="which is a folder"):
        parser.prepare("plot", tmp_path / "x.png")


def test_a_path_without_a_suffix_of_files_is_a_folder(tmp_path):
    parser = cli.OutputParser((".onnx",), folder=True)
    parser.prepare("output", tmp_path / "a" / "x.onnx")
    parser.prepare("output", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


@pytest.mark.parametrize("name", ["out", "out.npz", "out.v2"])
def test_predictions_are_in_the_file_that_was_named(tmp_path, name):
    rows = np.full((2, 3), 1 / 3, np.float32)
    prediction = Prediction(np.arange(2), {"probabilities": rows}, {}, {})
    prediction.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with np.load(tmp_path / name) as file:
        np.testing.assert_array_equal(file["probabilities"], rows)


def test_a_verb_refuses_its_output_before_it_works_and_makes_its_folder(tmp_path):
    def cost(path):
        command = [sys.executable, "-m", "sft_jax.cost", "--config=configs/synthetic.py"]
        return subprocess.run(
            [*command, "--config.model.num_classes=4", "--compare=sft", f"--json={path}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
        )

    done = cost("~/new/x.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "x.json").is_file()
    done = cost("~/new/x.json/y.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ConfigError: --json: given ")
