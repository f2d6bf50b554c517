"""The cell that installs sft_jax into a notebook's runtime, with pip and packages made up."""

import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from sft_jax.training import predictor

FOLDER = Path(__file__).parents[2] / "notebooks"
SETUP = {
    path.stem: next(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if "setup" in cell.metadata.get("tags", [])
    )
    for path in sorted(FOLDER.glob("*.ipynb"))
}
TEXT = next(iter(SETUP.values()))


def test_all_notebooks_have_the_same():
    assert set(SETUP.values()) == {TEXT}


@pytest.fixture
def cell(monkeypatch):
    """The names that the cell defines, before it does anything."""
    definitions, _, call = TEXT.rpartition("\n\n\n")
    assert call == "ROOT = setup()"
    namespace = {}
    exec(definitions, namespace)
    return namespace


@pytest.fixture
def runs(monkeypatch):
    """Commands that were run; they succeed, and what pip's constraints held is kept."""
    commands = []

    def run(command, **_):
        given = [str(word) for word in command]
        if "--constraint" in given:
            file = given.index("--constraint") + 1
            given[file] = Path(given[file]).read_text()
        commands.append(given)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


INSTALLED = {"jax": "0.10.9", "jaxlib": "0.10.8", "jax_cuda12-plugin": "0.10.9", "libtpu": "0.1"}


@pytest.fixture
def stranger(monkeypatch, cell):
    """A runtime with jax and without sft_jax."""
    packages = {**INSTALLED, "numpy": "2.2", "jaxtyping": "0.3"}
    entries = [types.SimpleNamespace(name=n, version=v) for n, v in packages.items()]
    monkeypatch.setattr(metadata, "distributions", lambda: entries)

    def lacking(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="flax")

    monkeypatch.setitem(
        cell,
        "importlib",
        types.SimpleNamespace(import_module=lacking, invalidate_caches=lambda: None),
    )
    return cell


def test_nothing_is_installed_where_it_can_be_imported(cell, runs, capsys):
    assert predictor.load  # imported above, since its packages ask the system what it is
    assert cell["setup"]() == FOLDER.parent
    assert runs == []
    printed = capsys.readouterr().out
    assert (
        printed == f"Jupyter: sft_jax was here, nothing installed; jax {metadata.version('jax')}\n"
    )


def test_what_is_there_of_jax_is_held_and_nothing_else(stranger, runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    assert stranger["setup"]() == FOLDER.parent
    (command,) = runs
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
    pins = "jax==0.10.9\njax-cuda12-plugin==0.10.9\njaxlib==0.10.8\nlibtpu==0.1\n"
    assert command[5:] == ["--constraint", pins, f"{FOLDER.parent}[demo]"]
    assert capsys.readouterr().out.startswith("Colab: sft_jax installed, jax 0.10.9 kept; ")


def test_a_runtime_without_jax_gets_one(stranger, runs, capsys, monkeypatch):
    monkeypatch.setattr(metadata, "distributions", list)
    stranger["setup"]()
    assert runs[0][5:7] == ["--constraint", ""]
    assert "sft_jax installed, with jax; " in capsys.readouterr().out


def test_a_jax_that_does_not_suit_is_told_and_not_replaced(stranger, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "sft_jax needs jax>=9")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError) as caught:
        stranger["setup"]()
    for words in ("'jax': '0.10.9'", "is kept as it is", "needs jax>=9", "with a newer jax"):
        assert words in str(caught.value)


def test_without_the_source_it_is_fetched_from_where_it_is_said_to_be(
    stranger, runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(stranger, "util", types.SimpleNamespace(find_spec=lambda _: None))
    with pytest.raises(RuntimeError, match="set SOURCE above to its address"):
        stranger["setup"]()
    stranger["SOURCE"] = "https://example.org/sft_jax"
    target = tmp_path / "sft_jax_source"
    assert stranger["setup"]() == target
    clone = ["git", "clone", "--depth=1", "https://example.org/sft_jax", str(target)]
    assert runs[0] == clone
    assert runs[1][-1] == f"{target}[demo]"
