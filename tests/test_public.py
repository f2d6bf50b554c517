"""The public interface: what `import sft_jax` and the rooms export, and that it stays cheap."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sft_jax
from sft_jax.__main__ import commands

ROOT = Path(sft_jax.__file__).parents[1]
ROOMS = [path.parent.name for path in sorted((ROOT / "sft_jax").glob("*/__init__.py"))]

IMPORTS = """
import sys
import sft_jax
sft_jax.__version__, dir(sft_jax)
heavy = {"jax", "numpy", "flax", "ml_collections", "absl"} & set(sys.modules)
assert not heavy, heavy

import importlib, pkgutil
from sft_jax.__main__ import commands
for module in pkgutil.walk_packages(sft_jax.__path__, "sft_jax."):
    if module.name.removeprefix("sft_jax.") not in {*commands(), "__main__"}:
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # of an extra
            assert not error.name.startswith("sft_jax"), error
functions = "load_config prepare train evaluate load report".split()
assert all(callable(getattr(sft_jax, name)) for name in functions)
"""


def test_importing_the_package_starts_nothing_and_modules_hide_no_function():
    """The commands are modules of the functions' names, so nothing may import them."""
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_export_is_there_and_every_package_says_what_is_in_it(room):
    package = importlib.import_module(f"sft_jax.{room}".rstrip("."))
    assert package.__doc__
    for name in getattr(package, "__all__", ()):
        assert getattr(package, name) is not None, name
    if not room:
        assert sorted(dir(package)) == sorted(package.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'reprot'"):
        importlib.import_module("sft_jax.reports").reprot  # noqa: B018


def test_functions_document_their_arguments():
    api = importlib.import_module("sft_jax.api")
    for name in ("load_config", "prepare", "train", "evaluate", "load", "report"):
        function = getattr(api, name)
        documented = inspect.getdoc(function)
        for argument in list(inspect.signature(function).parameters)[1:]:
            assert f"{argument}: " in documented, (name, argument)


def test_the_list_of_commands_has_all_of_them(capsys):
    importlib.import_module("sft_jax.__main__").main()
    lines = capsys.readouterr().out.splitlines()
    files = [path for path in (ROOT / "sft_jax").glob("*.py") if "cli.run(" in path.read_text()]
    names = sorted(path.stem for path in files if path.stem != "cli")
    assert [line.split()[0] for line in lines[2:]] == names == list(commands())
    assert all(len(line.split(maxsplit=1)[1]) < 80 for line in lines[2:])


def test_functions_take_text_and_expand_the_home_folder(tmp_path, monkeypatch, one_device):
    from sft_jax import api  # not the package's names, which a test of a command may have hidden

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((ROOT / "configs" / "synthetic.py").read_text())
    changes = {
        "model.embed_dim": 8,
        "model.num_post_layers": 1,
        "train.duration": "2 steps",
        "train.batch_size": 8,
        "train.log_every": 1,
        "data.data_dir": "~/prepared",
        "data.options.num_train": 16,
        "data.options.num_valid": 8,
        "data.options.num_test": 8,
    }
    config = api.load_config("~/mine.py", changes)
    assert config.model.embed_dim == 8
    assert api.load_config("~/mine.py").model.embed_dim != 8
    assert api.prepare(config).num_records["train"] == 16
    assert api.train(config, "~/run").finished
    scores = api.evaluate("~/run", split="valid").metrics
    assert scores["num_samples"] == 8
    for name in ("evaluation_valid.json", "ablation_valid.json", "example.npz"):
        assert (tmp_path / "run" / name).is_file(), name
    assert api.report(["~/run"], "~/page") == tmp_path / "page" / "report.html"
    inputs = {"m0": np.zeros((3, config.modalities[0].length, 6), np.float32)}
    assert api.load(tmp_path / "run").predict(inputs).probabilities.shape == (3, 4)
