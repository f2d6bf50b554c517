"""Holds the table of who may import whom, so that imports keep going one way."""

import ast
from pathlib import Path

import pytest

import sft_jax

PACKAGE = Path(sft_jax.__file__).parent
FORBIDDEN = {"tensorflow", "torch"}
# What may all the same import one of them, where it is used and not before.
OPTIONAL = {module: {"torch"} for module in ("interop.torch_pools", "interop.torch_sft")}

FILES = ("json_files", "array_files", "layouts", "memory")
# What stands alone and is used in several rooms.
TOOLS = ("schema", "checksums")
CORE = ("types", "config", "data_config", "training_config", "study_config", "config_io", *FILES)
# Commands: nothing imports them. `cli` and `inference` are what they share.
VERBS = {
    *("train", "evaluate", "predict", "benchmark", "plan", "export", "prepare", "report"),
    *("check_vectors", "cost", "diagram", "spread", "sweep"),
}
ANYTHING = {"", *CORE, *TOOLS, "version", "cli", "inference", "data", "models", "training"} | {
    *("efficiency", "interop", "analysis"),
}
# Of training, what computes on arrays of outcomes alone.
PURE = ("bootstrap", "calibration", "metrics")
# Of data, what reads the files of others.
_UNTRUSTED = ("data.checks", "data.pickle_opcodes", "data.safe_pickle")
_LATE = {*CORE, "models", "training"}
# Room or module -> what of the package it may import; a prefix stands for all below it. The most
# specific entry holds.
ALLOWED = {
    "": {"version", "inference"},
    "version": set(),
    "types": set(),
    "json_files": {"types"},
    "array_files": {"types", "memory"},
    "memory": set(),
    "layouts": {"json_files"},
    "data_config": {"types"},
    "training_config": {"types"},
    "config": {"types", "data_config", "training_config"},
    "study_config": {"types", "config", "config_io"},
    "studies": {"types", "config", "data_config", "study_config"},
    "config_io": {"types", "config", "data_config"},
    "schema": {"types", "version", "json_files"},
    "checksums": set(),
    "paper": {"types", "config", "data_config"},
    "data": {*FILES, "types", "config", "data_config", "checksums", "data"},
    "models": {"types", "config", "models"},
    "training": {*CORE, *TOOLS, "models", "data", "training"},
    "training.step": {*CORE, "training"},
    "analysis": {*CORE, "schema", *(f"training.{name}" for name in PURE), "version", "analysis"},
    "interop": _LATE | {"interop"},
    "interop.torch_archive": {*FILES, "types", *_UNTRUSTED},
    "efficiency": _LATE | {"efficiency"},
    "cli": ANYTHING,
    "inference": ANYTHING,
    **dict.fromkeys(VERBS, ANYTHING),
}


def modules_of(package):
    """`{dotted name without the package: its file}`; the package itself is `""`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name, path, modules, root):
    """What a module imports: modules of the package (without its name), and foreign packages."""
    own, foreign = set(), set()
    parts = name.split(".") if name else []
    container = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = [root, *container][: len(container) + 2 - node.level]
                base = ".".join([*above, base] if base else above)
            # `from a import b` is a module a.b where there is one, and a name of a otherwise.
            inside = base.removeprefix(root).lstrip(".")
            targets = [
                f"{base}.{alias.name}"
                if base.split(".")[0] == root and f"{inside}.{alias.name}".lstrip(".") in modules
                else base
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            if target == root or target.startswith(f"{root}."):
                own.add(target.removeprefix(root).lstrip("."))
            else:
                foreign.add(target.split(".")[0])
    return own, foreign


def covers(entry, name):
    return name == entry or (entry != "" and name.startswith(f"{entry}."))


def violations(package, allowed):
    """Every breach of the table, of the ban on other frameworks, and every cycle, as text."""
    modules, root = modules_of(package), package.name
    found, graph = [], {}
    for name, path in modules.items():
        own, foreign = imports_of(name, path, modules, root)
        graph[name] = own - {name}
        found += [
            f"{name}: imports {other}"
            for other in sorted(foreign & FORBIDDEN - OPTIONAL.get(name, set()))
        ]
        entries = [entry for entry in allowed if covers(entry, name)]
        if not entries:
            found.append(f"{name}: not in the table")
            continue
        permitted = allowed[max(entries, key=len)]
        for other in sorted(own):
            if not any(covers(entry, other) for entry in permitted):
                found.append(f"{name}: imports {other}")
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph):
    """Every cycle once, by depth-first search."""
    done, found = set(), []

    def visit(name, trail):
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_imports_of_the_package_keep_the_table():
    assert violations(PACKAGE, ALLOWED) == []


def test_the_search_sees_the_imports_there_are():
    modules = modules_of(PACKAGE)
    assert {"", "types", "config", "models.sft", "training.step", "data"} <= set(modules)
    own, foreign = imports_of("models.sft", modules["models.sft"], modules, "sft_jax")
    parts = ("blocks", "layers", "mixup", "output", "pooling", "pools", "tokenizers")
    assert {"config", "types", *(f"models.{part}" for part in parts)} == own
    assert {"flax", "jax", "jaxtyping", "typing"} == foreign


CLEAN = {
    "__init__.py": "from box.version import __version__\n",
    "version.py": "__version__ = '1'\n",
    "types.py": "import numpy\n",
    "config.py": "from box.types import A\n",
    "models/__init__.py": "",
    "models/net.py": "import jax\nfrom box import config\nfrom .parts import B\n",
    "models/parts.py": "from ..types import A\n",
    "training/__init__.py": "",
    "training/step.py": "from box.config import C\n",
    "training/run.py": "from box.models import net\nfrom box.training import step\n",
    "train.py": "import box.training.run\n",
}


def plant(folder, **changes):
    package = folder / "box"
    for name, text in {**CLEAN, **changes}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_a_clean_tree_passes(tmp_path):
    assert violations(plant(tmp_path), ALLOWED) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("models/net.py", "from box.training import run\n", "models.net: imports training.run"),
        ("models/net.py", "from ..training.run import x\n", "models.net: imports training.run"),
        ("models/net.py", "import box.training\n", "models.net: imports training"),
        ("models/net.py", "from box import training\n", "models.net: imports training"),
        ("models/net.py", "def f():\n    from box import train\n", "models.net: imports train"),
        ("models/net.py", "from .. import train\n", "models.net: imports train"),
        ("models/net.py", "from box import __version__\n", "models.net: imports "),
        ("training/step.py", "from box.models.net import N\n", "training.step: imports models.net"),
        ("training/run.py", "import torch.nn as nn\n", "training.run: imports torch"),
        ("train.py", "def f():\n    import tensorflow\n", "train: imports tensorflow"),
        ("train.py", "from box import report\n", "train: imports report"),
        ("types.py", "from box.config import C\n", "types: imports config"),
        ("version.py", "from box.types import A\n", "version: imports types"),
        ("newroom.py", "", "newroom: not in the table"),
        ("types.py", "from box.config import C\n", "cycle: config -> types -> config"),
        ("models/parts.py", "from . import net\n", "cycle: models.net -> models.parts -> models"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, name, text, expected):
    planted = plant(tmp_path, **{name: text, "report.py": ""})
    found = violations(planted, ALLOWED)
    assert any(line.startswith(expected) for line in found), found
