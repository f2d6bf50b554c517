"""Notebooks as they are stored, and run from top to bottom with little to do."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from slow import corners

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
# A folder or a file of somebody's machine.
MACHINE = re.compile(r"(?:/(?:tmp|home|root|work|Users|content|var)/|[A-Z]:\\)[\w.-]*")

stored = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def figures_of(notebook):
    return [out for out in outputs_of(notebook) if "image/png" in out.get("data", {})]


def text_of(notebook):
    """Everything that was printed or shown as text."""
    pieces = []
    for output in outputs_of(notebook):
        shown = {kind: data for kind, data in output.get("data", {}).items() if "image" not in kind}
        pieces += [output.get("text", ""), *shown.values()]
    return "\n".join(pieces)


def complaints_of(notebook):
    """Errors, and what was written where warnings go."""
    return [
        output
        for output in outputs_of(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def test_there_are_five():
    assert [path.name[:2] for path in PATHS] == ["01", "02", "03", "04", "05"]


@stored
def test_stored_outputs_are_of_one_run_small_and_of_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(figures_of(notebook)) >= 2
    assert complaints_of(notebook) == []
    assert MACHINE.findall(text_of(notebook)) == []
    assert not re.search(r"warning|deprecat", text_of(notebook), flags=re.IGNORECASE)
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@stored
def test_every_notebook_has_a_title_one_setup_and_one_cell_of_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# ")
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert sorted(tags) == ["parameters", "setup"]


@stored
def test_notebooks_import_the_public_interface_alone(path):
    """Names of `sft_jax` and of what its rooms export, which stay where they are."""
    found = 0
    for cell in code_cells(nbformat.read(path, as_version=4)):
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                inside = [alias.name for alias in node.names if alias.name.startswith("sft_jax.")]
                assert inside == []
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sft_jax":
                exported = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= set(exported), node.module
                found += 1
    assert found


TINY = {"model.embed_dim": 8, "model.num_heads": 2, "model.num_post_layers": 1}
SHORT = {**TINY, "modalities.spect.length": 128}
WATCH = {
    **TINY,
    **{"train.duration": "2 steps", "optimizer.warmup": "0 steps", "data.options.step": 250},
}
# Notebook -> parameters that leave it little to do, and what it then says.
LITTLE = {
    "01_quickstart": ({"SETTINGS": WATCH}, ("width 8, 2 heads", "accelerometer and gyroscope")),
    "02_pooling_explorer": (
        {"SETTINGS": WATCH, "POOLS": ["cls_topk"], "COMPARED": ["avg"], "TOKENS": [2, 10]},
        ("width 8, 2 heads", r"\| avg +\|"),
    ),
    "03_throughput": (
        {"SETTINGS": SHORT, "MODELS": ["sft"], "BATCH": 2, "ROUNDS": 1},
        (r"\| sft ", "GFLOP/s, memory"),
    ),
    "04_planning_a_pod": (
        {"SETTINGS": SHORT, "MODELS": ["sft"], "CPU": "cpu:2", "CHIPS": [2]},
        (r"\| copied to every chip", r"\| cpu:2 +\| +2 \| +\d+ \| .*reductions only"),
    ),
    "05_your_own_data": (
        {"SETTINGS": {**TINY, "train.duration": "2 steps"}, "SAMPLES": 90},
        ("train 56, valid 17, test 17", r"\| motion alone, where it is there"),
    ),
}


@pytest.mark.parametrize(
    "path",
    corners(PATHS, *(path for path in PATHS if path.stem[:2] == "05")),
    ids=lambda path: path.stem,
)
def test_every_notebook_runs(path, tmp_path):
    """In a kernel of its own, with a home of its own, so that nothing is found ready."""
    parameters, expected = LITTLE[path.stem]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(FOLDER.parent),
        # The list of fonts takes a while to make; it is the one thing taken from the real home.
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(Path.home() / ".config" / "matplotlib")),
    }
    command = [sys.executable, FOLDER / "execute.py", path, "--output", tmp_path]
    done = subprocess.run(
        [*command, "--parameters", json.dumps(parameters)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    as_stored = nbformat.read(path, as_version=4)
    assert complaints_of(notebook) == []
    assert len(figures_of(notebook)) == len(figures_of(as_stored))
    for pattern in expected:
        assert re.search(pattern, text_of(notebook)), pattern


def cell(kind, text, **metadata):
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}[kind]
    return make(text, metadata=metadata)


def test_given_parameters_follow_those_of_the_notebook(runner):
    before = cell("code", "A = 1\nB = 'x'  # what for", tags=["parameters"])
    notebook = nbformat.v4.new_notebook(cells=[before, cell("code", "A")])
    changed = runner.with_parameters(notebook, {"B": "y", "A": [1, None]})
    sources = [cell.source for cell in changed.cells]
    assert sources == ["A = 1\nB = 'x'  # what for", "B = 'y'\nA = [1, None]", "A"]
    assert len(notebook.cells) == 2
    with pytest.raises(ValueError, match=r"given \['C'\], expected some of \['A', 'B'\]"):
        runner.with_parameters(notebook, {"C": 0})
    with pytest.raises(ValueError, match="found 0, expected one"):
        runner.with_parameters(nbformat.v4.new_notebook(), {"A": 0})


def test_what_changes_from_run_to_run_is_not_stored(runner):
    ran = cell("code", "1", execution={"shell.execute_reply": "2026-01-01"}, tags=["a"])
    ran.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a\n"),
        nbformat.v4.new_output("stream", name="stdout", text="b\n"),
        nbformat.v4.new_output("stream", name="stderr", text="c\n"),
        nbformat.v4.new_output("display_data", {"text/html": "t", "text/plain": "<O at 0x7f>"}),
        nbformat.v4.new_output("display_data", {"text/plain": "1"}),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[ran], metadata={"language_info": {"name": "python", "version": "3"}}
    )
    tidy = runner.tidied(notebook)
    (kept,) = tidy.cells
    assert kept.metadata == {"tags": ["a"]}
    assert [output.get("text") for output in kept.outputs[:2]] == ["a\nb\n", "c\n"]
    assert [output.data for output in kept.outputs[2:]] == [{"text/html": "t"}, {"text/plain": "1"}]
    assert tidy.metadata.language_info == {"name": "python"}
