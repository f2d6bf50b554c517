"""The site builds without a warning where the extra `docs` is installed."""

import importlib.util
import re
import subprocess
import sys

import pytest
from doc_pages import PAGES, ROOT, load_pages

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="needs the extra docs: pip install '.[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    command.append("--config-file=docs/site/mkdocs.yml")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_and_notebook_is_built(site):
    docs = ROOT / "docs"
    sources = [page.relative_to(docs).as_posix() for page in PAGES if page.is_relative_to(docs)]
    for source in [*sources, "commands.md", *load_pages().notebooks()]:
        stem = source.rpartition(".")[0].removesuffix("index")
        assert (site / stem / "index.html").is_file(), source


def test_docstrings_are_in_the_reference(site):
    text = (site / "api" / "models" / "pools" / "index.html").read_text()
    assert 'id="sft_jax.models.pools.attn_topk"' in text
    assert "most salient first" in text
    pages = load_pages()
    for name in pages.modules().keys() - set(pages.ROOMS):
        page = site / "api" / name.replace(".", "/") / "index.html"
        assert 'class="doc doc-object doc-module"' in page.read_text(), name


def test_pages_load_nothing_from_elsewhere(site):
    loaded = r'<(?:script|link|img)[^>]*?(?:src|href)="(https?://[^"]+)"'
    for page in (site / "index.html", site / "concepts" / "index.html"):
        assert re.findall(loaded, page.read_text()) == []
