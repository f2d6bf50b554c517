"""README and the pages of docs/ as the tests of documentation see them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# In front of a block that no test can run; what follows says why.
NOT_RUN = "not run by tests:"


class Block(NamedTuple):
    """A fenced block: its language, text, and the comment in front of it."""

    language: str
    text: str
    note: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    pattern = r"(?:<!-- (.*?) -->\n)?^```(\w+)\n(.*?)^```"
    found = re.findall(pattern, page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [Block(language, text, note) for note, language, text in found]


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[tuple[str, str]]:
    """Every `python -m sft_jax.<verb> <arguments>` of a page, in blocks and between backticks."""
    blocks = "\n".join(b.text for b in blocks_of(page) if b.language in ("bash", "console"))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += [line.replace("\n", " ") for line in re.findall(r"`([^`]+)`", prose_of(page))]
    found = []
    for line in lines:
        found += re.findall(r"python -m sft_jax\.(\w+)((?:(?!python -m).)*)", line)
    return found


def load_pages() -> ModuleType:
    """`docs/site/pages.py`, which makes pages of the code."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
