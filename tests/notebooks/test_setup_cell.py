"""The cell of every notebook that installs sft_jax where it is missing, with pip made up."""

from importlib import metadata, util
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

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


def test_all_notebooks_have_the_same_short_one():
    assert set(SETUP.values()) == {TEXT}
    assert len([line for line in TEXT.splitlines() if line.strip()]) <= 10


@pytest.fixture
def run(monkeypatch):
    """Runs the cell where some packages are missing; returns the lines that pip is given."""
    monkeypatch.setattr("sft_jax.efficiency.one_device_a_core", lambda: None, raising=False)

    def run(*missing):
        find_spec, namespace, lines = util.find_spec, {}, []
        monkeypatch.setattr(
            util, "find_spec", lambda name: None if name in missing else find_spec(name)
        )

        class Shell:
            def run_line_magic(self, magic, line):
                assert magic == "pip"
                lines.append(line.format(**namespace))

        namespace["get_ipython"] = Shell
        exec(TransformerManager().transform_cell(TEXT), namespace)
        return lines

    return run


def test_nothing_is_installed_where_it_is_there(run):
    assert run() == []


def test_the_jax_that_is_there_is_kept(run):
    version = metadata.version("jax")
    assert run("sft_jax") == [f'install --quiet "..[demo]" "jax=={version}"']


def test_a_runtime_without_jax_gets_one(run):
    assert run("sft_jax", "jax") == ['install --quiet "..[demo]" "jax"']
