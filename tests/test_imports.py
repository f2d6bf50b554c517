import pytest
from import_graph import PACKAGE, describe, imports_of, modules_of, rooms_of, violations


def test_imports_of_the_package_keep_the_table():
    assert violations(PACKAGE) == []


def test_the_search_sees_the_imports_there_are():
    modules = modules_of(PACKAGE)
    assert {"", "types", "config", "models.sft", "training.step", "data"} <= set(modules)
    own, foreign = imports_of("models.sft", modules["models.sft"], modules, "sft_jax")
    parts = ("base", "blocks", "layers", "mixup", "pooling", "pools", "tokenizers")
    assert {"config.modality", "config.model", *(f"models.{part}" for part in parts)} == own
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


def test_the_drawing_of_the_rooms_is_of_today():
    """`python tests/import_graph.py docs/figures/rooms.svg` draws it again."""
    drawing = PACKAGE.parent / "docs" / "figures" / "rooms.svg"
    assert f">{describe(rooms_of(PACKAGE))}<" in drawing.read_text()
