"""Holds the table of which room may import which, so that imports keep going one way.

A room is a folder of the package, or one of the modules that everything builds on. The commands
(`python -m sft_jax.<verb>`) are one room, of which nothing is imported.
"""

import ast
from pathlib import Path

import pytest

import sft_jax

PACKAGE = Path(sft_jax.__file__).parent
FORBIDDEN = {"tensorflow", "torch"}
# Rooms that need an extra, and import it where it is used and not before.
OPTIONAL = {"interop": {"torch"}}
VERBS = "verbs"
BASE = ("types", "version", "lazy")
# Room -> rooms that it may import beside itself and `BASE`.
ALLOWED = {
    "types": set(),
    "version": set(),
    "lazy": set(),
    "config": set(),
    "files": set(),
    "attention": {"config"},
    "models": {"config", "attention"},
    "metrics": set(),
    "tasks": {"config", "metrics"},
    "data": {"config", "files"},
    "runs": {"config", "files"},
}
ALLOWED["training"] = {*ALLOWED}
for room in ("studies", "efficiency", "interop", "reports"):
    ALLOWED[room] = {*ALLOWED["training"], "training"}
# The functions of the public interface.
ALLOWED["api"] = {*ALLOWED}
# What the commands share.
ALLOWED["console"] = set()
ALLOWED["cli"] = {*ALLOWED}
ALLOWED[VERBS] = {*ALLOWED}
# The public face, which imports nothing before it is asked for.
ALLOWED[""] = {*ALLOWED}


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


def room_of(name):
    """The room a module stands in: its folder, a base module itself, or the commands."""
    first = name.split(".")[0]
    return first if first in ALLOWED or "." in name else VERBS


def private_names_of(name, path, root):
    """Imports of names with an underscore from another room, as text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{root}."):
            other = node.module.removeprefix(f"{root}.")
            for alias in node.names:
                private = alias.name.startswith("_") and not alias.name.startswith("__")
                if private and room_of(other) != room_of(name):
                    yield f"{name}: imports the private name {other}.{alias.name}"


def violations(package, allowed=ALLOWED):
    """Every breach of the table, of the ban on other frameworks, and every cycle, as text."""
    modules, root = modules_of(package), package.name
    found, graph = [], {}
    for name, path in modules.items():
        own, foreign = imports_of(name, path, modules, root)
        graph[name] = own - {name}
        room = room_of(name)
        found += private_names_of(name, path, root)
        found += [
            f"{name}: imports {other}"
            for other in sorted(foreign & FORBIDDEN - OPTIONAL.get(room, set()))
        ]
        if room not in allowed:
            found.append(f"{name}: room {room!r} is not in the table")
            continue
        permitted = allowed[room] | ({*BASE, room} if room not in BASE else set())
        for other in sorted(own):
            if room_of(other) not in permitted - {VERBS}:
                found.append(f"{name}: imports {other}")
    rooms = {}
    for name, imported in graph.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in imported)
    rooms = {room: others - {room} for room, others in rooms.items()}
    found += [f"cycle of rooms: {' -> '.join(cycle)}" for cycle in cycles(rooms)]
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
    assert violations(PACKAGE) == []


def test_the_search_sees_the_imports_there_are():
    modules = modules_of(PACKAGE)
    assert {"", "types", "config", "models.sft", "training.step", "data"} <= set(modules)
    own, foreign = imports_of("models.sft", modules["models.sft"], modules, "sft_jax")
    parts = ("blocks", "layers", "mixup", "output", "pooling", "pools", "tokenizers")
    assert {"config.run", "types", *(f"models.{part}" for part in parts)} == own
    assert {"flax", "jax", "jaxtyping", "typing"} == foreign


CLEAN = {
    "__init__.py": "from box.version import __version__\n",
    "version.py": "__version__ = '1'\n",
    "types.py": "import numpy\n",
    "config/run.py": "from box.types import A\n",
    "models/__init__.py": "",
    "models/net.py": "import jax\nfrom box.config import run\nfrom .parts import B\n",
    "models/parts.py": "from ..types import A\n",
    "training/__init__.py": "",
    "training/step.py": "from box.config.run import C\n",
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
    assert violations(plant(tmp_path)) == []


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
        ("data/read.py", "from box.models.net import N\n", "data.read: imports models.net"),
        (
            "training/step.py",
            "from box.models.net import _n\n",
            "training.step: imports the private",
        ),
        (
            "config/a.py",
            "from box.models import net\n",
            "cycle of rooms: config -> models -> config",
        ),
        ("training/run.py", "import torch.nn as nn\n", "training.run: imports torch"),
        ("train.py", "def f():\n    import tensorflow\n", "train: imports tensorflow"),
        ("train.py", "from box import report\n", "train: imports report"),
        ("types.py", "from box.config.run import C\n", "types: imports config.run"),
        ("version.py", "from box.types import A\n", "version: imports types"),
        ("newroom/a.py", "", "newroom.a: room 'newroom' is not in the table"),
        ("types.py", "from box.config.run import C\n", "cycle: config.run -> types -> config.run"),
        ("models/parts.py", "from . import net\n", "cycle: models.net -> models.parts -> models"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, name, text, expected):
    planted = plant(tmp_path, **{name: text, "report.py": ""})
    found = violations(planted)
    assert any(line.startswith(expected) for line in found), found
