"""Writes a report as Markdown. Figures stand beside it as `<name>.png`."""

import re

from sft_jax.reports.document import Block, Commands, Document, Mono, Pictures, Table, Text
from sft_jax.reports.tables import draw, escaped, grid

# What Markdown or the HTML in it would act on, wherever in a line it stands.
_ACTIVE = re.compile(r"([\\`*\[\]|<])")


def render(document: Document) -> str:
    """The report as Markdown."""
    parts = [f"# {escape(document.title)}", _text(document.lead)]
    if document.headlines:
        rows = [
            {"": headline.label, "value": headline.value, "note": headline.note or None}
            for headline in document.headlines
        ]
        parts.append(_table(Table(rows)))
    for section in document.sections:
        parts += [f"## {escape(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Plain text in one line, so that Markdown shows it as it is."""
    line = _ACTIVE.sub(r"\\\1", " ".join(text.split("\n")))
    # An underscore inside a word does nothing; at its edge it begins emphasis.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return _text(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Commands):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        return f"{fence}bash\n{block.text}\n{fence}"
    return _pictures(block)


def _text(text: Text) -> str:
    return "".join(
        _code(part.text) if isinstance(part, Mono) else escape(part) for part in text.parts
    )


def _code(text: str) -> str:
    """Code within a line, which ends at no backtick of its own."""
    line = " ".join(text.splitlines())
    if "`" not in line:
        return f"`{line}`"
    fence = "`" * (_longest_run(line) + 1)
    return f"{fence} {line} {fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _table(table: Table) -> str:
    drawn = draw(escaped(grid(table.rows), escape))
    return f"**{escape(table.caption)}**\n\n{drawn}" if table.caption else drawn


def _pictures(block: Pictures) -> str:
    lines = [f"![{escape(picture.alt)}]({picture.name}.png)" for picture in block.pictures]
    return "\n".join(lines) + f"\n\n*{escape(block.caption)}*"
