"""README and docs/ name files, commands, settings, links and figures that there are."""

import re
import shlex
from urllib.parse import unquote

import pytest
import yaml
from absl import flags
from doc_pages import (
    NOT_RUN,
    PAGES,
    ROOT,
    RUN_BY,
    blocks_of,
    commands_of,
    is_apart,
    load_pages,
    prose_of,
)
from ml_collections import config_flags

from sft_jax.config.io import from_dict, load, to_dict
from sft_jax.config.study import load_study
from sft_jax.efficiency.model_costs import forward_gflop, num_parameters
from sft_jax.efficiency.scaling import AXES
from sft_jax.efficiency.variants import VARIANTS, variant

DOCS = ROOT / "docs"
GENERATED = load_pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_files_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b((?:configs|sft_jax|tests|docs)/[\w/]+(?:\.\w+)?)\b(?!\*)", text):
        assert (ROOT / path).exists() or list(ROOT.glob(f"{path}*")), path


@each_page
def test_links_and_their_anchors_resolve(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose_of(page)):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        # The site knows nothing outside of docs/.
        assert page.parent == ROOT or target.is_relative_to(DOCS), link
        if anchor:
            assert anchor in anchors_of(target), link


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def test_every_figure_is_shown():
    shown = "".join(page.read_text() for page in PAGES)
    for figure in (DOCS / "figures").iterdir():
        assert f"figures/{figure.name})" in shown, figure.name


@each_page
def test_commands_and_their_flags_exist(page):
    verbs = GENERATED.verbs()
    for verb, arguments in commands_of(page):
        assert verb in verbs, verb
        given = re.findall(r"--(no)?(\w+)", arguments)
        known = set(GENERATED.flags_of(verbs[verb])) | {"help"}
        for no, name in given:
            assert f"{no}{name}" in known or name in known, (verb, name)


@pytest.mark.filterwarnings("ignore:the load_module")  # how ml_collections reads a file
@each_page
def test_configurations_of_commands_can_be_used(page, tmp_path, monkeypatch):
    """Every `--config=configs/...` with its overrides goes the way that a verb takes it."""
    for block in blocks_of(page):
        if "def get_config" in block.text:
            (tmp_path / "mine.py").write_text(block.text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for verb, arguments in commands_of(page):
        given = [word for word in shlex.split(arguments) if word.startswith("--config")]
        if not any(word.startswith("--config=") for word in given) or "$" in "".join(given):
            continue  # loops over all files: see the test of the reproduction
        if verb == "sweep":
            load_study(given[0].removeprefix("--config="))
            continue
        values, words = flags.FlagValues(), ["verb", *given]
        config = config_flags.DEFINE_config_file(
            "config", flag_values=values, lock_config=True, sys_argv=words
        )
        values(words)
        from_dict(config.value)


def test_settings_exist():
    """Every setting named in prose is an entry of a configuration."""
    configs = [to_dict(load(path)) for path in (ROOT / "configs").glob("*.py")]
    pattern = r"`[^`]*?\b((?:model|data|train|optimizer|mixup|augment|modalities)\.[\w.<>]+\w)"
    found = set()
    for page in PAGES:
        found |= set(re.findall(pattern, prose_of(page)))
    files = (".json", ".lock", ".py", ".npz", ".md", ".sbatch", ".svg")
    found = {key for key in found if not key.endswith(files)}
    assert len(found) > 40
    for key in found:
        assert any(has(config, key.split(".")) for config in configs), key


def has(tree, keys):
    for key in keys:
        if not isinstance(tree, dict):
            return False
        tree = next(iter(tree.values()), None) if key == "<m>" else tree.get(key, KeyError)
    return tree is not KeyError


@each_page
def test_blocks_that_are_not_run_here_say_why(page):
    for block in filter(is_apart, blocks_of(page)):
        if block.note.startswith(RUN_BY):
            assert (ROOT / block.note.removeprefix(RUN_BY)).is_file(), block.note
        else:
            assert block.note.removeprefix(NOT_RUN).strip(), block.text


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text())
    listed = list(paths_of(config["nav"]))
    assert len(listed) == len(set(listed))
    there = {page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert set(listed) == there | {"commands.md"}


def paths_of(nav):
    for item in nav:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            for value in item.values():
                yield from paths_of([value] if isinstance(value, str) else value)


def test_every_module_has_a_page():
    pages = GENERATED.api_pages()
    names = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sft_jax").rglob("*.py")}
    names.remove("sft_jax/__main__.py")  # has no page, as the list of commands has one
    assert sum(len(of_room) for of_room in pages.values()) == len(names)
    assert pages["models"]["api/models/pools.md"] == "# models.pools\n\n::: sft_jax.models.pools\n"
    assert "| [pools](pools.md) | Pools (" in pages["models"]["api/models/index.md"]
    assert "| [types](types.md) | Types shared by" in pages[""]["api/index.md"]


def test_the_page_of_commands_names_every_verb_with_its_flags():
    text = GENERATED.commands_page()
    for path in (ROOT / "sft_jax").glob("*.py"):
        is_verb = "cli.run(" in path.read_text() and path.stem != "cli"
        assert (f"\n## {path.stem}\n" in text) == is_verb
    section = text.split("\n## train\n")[1].split("\n## ")[0]
    own = ["config", "print_config", "workdir", "data_dir", "data_path", "extend"]
    own += ["cpu_devices", "compilation_cache"]
    joining = ["coordinator", "num_processes", "process_index", "distributed"]
    timeouts = ["heartbeat_timeout", "startup_timeout"]
    assert re.findall(r"`--(\w+)`", section) == [*own, *joining, *timeouts]
    assert "Flags: none." in text.split("\n## check_vectors\n")[1].split("\n## ")[0]


def test_the_reproduction_lists_the_paper_s_configurations():
    text = (DOCS / "reproduce.md").read_text()
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem.startswith(("vggsound", "mosei")):
            assert path.stem in text


PERFORMANCE = (DOCS / "performance.md").read_text()
MEASUREMENTS = (DOCS / "results" / "performance.md").read_text()


def test_the_performance_page_explains_every_variant_and_sweep():
    for name in (*VARIANTS, *AXES):
        assert f"`{name}`" in PERFORMANCE, name


@pytest.mark.parametrize("config", ["vggsound10", "mosei"])
def test_the_measurements_state_what_models_cost(config):
    table = MEASUREMENTS.split(f"python -m sft_jax.cost --config=configs/{config}.py`\n\n")[1]
    for name in ("sft", "fixed_cls_topk", "mbt"):
        own = variant(load(ROOT / "configs" / f"{config}.py"), name)
        row = re.search(rf"^\| {name} +\| +(\d+) \| +([\d.]+) \|", table, flags=re.MULTILINE)
        assert int(row[1]) == num_parameters(own)
        assert float(row[2]) == pytest.approx(forward_gflop(own), rel=1e-3)
