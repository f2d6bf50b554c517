"""README and the pages of docs/ as the tests of documentation see them."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# Comments in front of a block that is not run with its page: why, or the test module that does.
NOT_RUN = "not run by tests:"
RUN_BY = "run by "


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


def is_apart(block: Block) -> bool:
    """Whether a block is not run with its page."""
    return block.note.startswith((NOT_RUN, RUN_BY))


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[tuple[str, str]]:
    """Every `python -m sft_jax.<verb> <arguments>` of a page, in blocks and between backticks."""
    return commands_in(page.read_text())


def commands_in(text: str) -> list[tuple[str, str]]:
    """Every command of Markdown, in blocks of a shell, indented lines and between backticks."""
    shell = r"^```(?:bash|console)\n(.*?)^```"
    blocks = "\n".join(re.findall(shell, text, flags=re.DOTALL | re.MULTILINE))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = blocks.replace("\\\n", " ").splitlines()
    indented = prose.replace("\\\n", " ").splitlines()
    lines += [line for line in indented if line.startswith("    python -m")]
    lines += [line.replace("\n", " ") for line in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        found += re.findall(r"python -m sft_jax\.(\w+)((?:(?!python -m).)*)", line)
    return found


def all_commands() -> list[tuple[str, str]]:
    """Every command of README, docs/ without its results, configs/ and notebooks/."""
    texts = [page.read_text() for page in PAGES if "results" not in page.relative_to(ROOT).parts]
    for path in sorted((ROOT / "configs").rglob("*.py")):
        texts.append(ast.get_docstring(ast.parse(path.read_text())) or "")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return [command for text in texts for command in commands_in(text)]


def load_pages() -> ModuleType:
    """`docs/site/pages.py`, which makes pages of the code."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
