"""Pages of docs/ name files, commands and settings that there are."""

import re
from pathlib import Path

import pytest

from sft_jax.config_io import load, to_dict
from sft_jax.efficiency.models import forward_gflop, num_parameters
from sft_jax.efficiency.sweep import AXES
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.paper import mosei, vggsound

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b((?:configs|sft_jax|tests)/[\w/]+(?:\.py)?)\b(?!\*)", text):
        assert (ROOT / path).exists() or list(ROOT.glob(f"{path}*")), path
    for verb in re.findall(r"python -m sft_jax\.(\w+)", text):
        assert (ROOT / "sft_jax" / f"{verb}.py").is_file(), verb
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page):
    shared = flags_of("cli")
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        for verb, arguments in re.findall(r"python -m sft_jax\.(\w+)(.*)", line):
            given = set(re.findall(r"--(?:no(?=distributed|largest))?(\w+)", arguments))
            assert given <= flags_of(verb) | shared, line


def flags_of(module):
    """Names in the `DEFINE_` calls of a module."""
    text = (ROOT / "sft_jax" / f"{module}.py").read_text()
    return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text))


def test_settings_of_the_pages_exist():
    """Every override in its commands leads to an entry of a configuration it is used with."""
    text = (ROOT / "docs" / "reproduce.md").read_text() + (ROOT / "docs" / "pods.md").read_text()
    configs = [to_dict(vggsound(num_classes=10)), to_dict(mosei())]
    overrides = re.findall(r"--config\.([\w.<>]+)=(\S+?)[`\s)]", text)
    assert len(overrides) > 10
    for key, _ in overrides:
        found = []
        for tree in configs:
            for part in key.split("."):
                tree = next(iter(tree.values())) if part == "<m>" else tree.get(part, {})
            found.append(tree != {})
        assert any(found), key


def test_the_reproduction_lists_the_paper_s_configurations():
    text = (ROOT / "docs" / "reproduce.md").read_text()
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem.startswith(("vggsound", "mosei")):
            assert path.stem in text


PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()


def test_the_performance_page_explains_every_variant_and_sweep():
    for name in (*VARIANTS, *AXES):
        assert f"`{name}`" in PERFORMANCE, name


@pytest.mark.parametrize("config", ["vggsound10", "mosei"])
def test_the_performance_page_states_what_models_cost(config):
    table = PERFORMANCE.split(f"python -m sft_jax.cost --config=configs/{config}.py`\n\n")[1]
    for name in ("sft", "fixed_cls_topk", "mbt"):
        own = variant(load(ROOT / "configs" / f"{config}.py"), name)
        row = re.search(rf"^\| {name} +\| +(\d+) \| +([\d.]+) \|", table, flags=re.MULTILINE)
        assert int(row[1]) == num_parameters(own)
        assert float(row[2]) == pytest.approx(forward_gflop(own), rel=1e-3)
