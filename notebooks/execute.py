"""Executes notebooks and stores them with what they show: `python notebooks/execute.py [name ...]`.

Each runs in a kernel and a folder of its own, so that nothing is left behind but the notebook.
What changes at every run though nothing has changed (times of execution, versions of Python, the
process's memory addresses) is not stored.
"""

import argparse
import base64
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
# Of a cell, in seconds: far above what any takes, so that a kernel that hangs ends.
TIMEOUT = 1200
# Of a stored figure.
COLORS = 128


def with_parameters(
    notebook: nbformat.NotebookNode, values: Mapping[str, Any]
) -> nbformat.NotebookNode:
    """A copy whose cell tagged `parameters` is followed by one that sets other values.

    Raises:
        ValueError: not exactly one cell is tagged, or it does not set one of the names.
    """
    copy = nbformat.from_dict(notebook)
    tagged = [
        i for i, cell in enumerate(copy.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    if len(tagged) != 1:
        raise ValueError(f"cells tagged 'parameters': found {len(tagged)}, expected one")
    lines = copy.cells[tagged[0]].source.splitlines()
    known = {line.split("=")[0].strip() for line in lines if "=" in line and line[0].isalpha()}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"parameters: given {unknown}, expected some of {sorted(known)}")
    text = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    copy.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(text, id="given-parameters"))
    return copy


def execute(path: Path, values: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """Runs a notebook from top to bottom in an empty folder.

    Args:
        path: of the notebook.
        values: for some of its parameters.

    Returns:
        It with its outputs, tidied.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message has its traceback.
        ValueError: see `with_parameters`.
    """
    notebook = nbformat.read(path, as_version=4)
    if values:
        notebook = with_parameters(notebook, values)
    # The kernel of this interpreter's environment, before any that the user has installed.
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # On a busy machine XLA complains of slow compilations; what fails is raised as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources
        )
        client.record_timing = False
        client.execute()
    return tidied(notebook)


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs between two runs of the same notebook on other machines."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            # Of a figure and a table the picture is kept, not the name of their object.
            data = output.get("data", {})
            if len(data) > 1:
                data.pop("text/plain", None)
            if "image/png" in data:
                data["image/png"] = _smaller(data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    """A figure, in base64, with as many colours as its lines and letters need."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    image.quantize(COLORS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Text that came in several pieces, by chance of timing, in one."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main():
    """Executes what is named on the command line, all notebooks where nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks; all beside this file by default")
    parser.add_argument(
        "--parameters", type=json.loads, default={}, help="values of parameters, as JSON"
    )
    parser.add_argument("--output", type=Path, help="folder to write to instead of in place")
    given = parser.parse_args()
    for path in [Path(name) for name in given.names] or sorted(HERE.glob("*.ipynb")):
        notebook = execute(path, given.parameters)
        target = given.output / path.name if given.output else path
        nbformat.write(notebook, target)
        print(f"{path.name}: {target.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
