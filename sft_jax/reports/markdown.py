"""Renders a report as Markdown, with figures as `<name>.png` beside it."""

import re

from sft_jax.reports.document import Block, Commands, Document, Pictures
from sft_jax.reports.text_tables import format_table
from sft_jax.tasks.blocks import Code, TableBlock, TextBlock

# Characters with a meaning in Markdown or HTML anywhere in a line.
_ACTIVE = re.compile(r"([\\`*\[\]|<])")


def render(document: Document) -> str:
    """The report as Markdown."""
    parts = [f"# {escape(document.title)}", _text(document.lead)]
    if document.headlines:
        rows = [
            {"": headline.label, "value": headline.value, "note": headline.note or None}
            for headline in document.headlines
        ]
        parts.append(_table(TableBlock(rows)))
    for section in document.sections:
        parts += [f"## {escape(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Escapes plain text, in one line, so that Markdown shows it unchanged."""
    line = _ACTIVE.sub(r"\\\1", " ".join(text.split("\n")))
    # An underscore starts emphasis only at the edge of a word.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)


def _block(block: Block) -> str:
    if isinstance(block, TextBlock):
        return _text(block)
    if isinstance(block, TableBlock):
        return _table(block)
    if isinstance(block, Commands):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        return f"{fence}bash\n{block.text}\n{fence}"
    return _pictures(block)


def _text(text: TextBlock) -> str:
    return "".join(
        _code(part.text) if isinstance(part, Code) else escape(part) for part in text.parts
    )


def _code(text: str) -> str:
    """Inline code; the fence is longer than any run of backticks in it."""
    line = " ".join(text.splitlines())
    if "`" not in line:
        return f"`{line}`"
    fence = "`" * (_longest_run(line) + 1)
    return f"{fence} {line} {fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _table(table: TableBlock) -> str:
    drawn = format_table(table.rows, escape)
    return f"**{escape(table.caption)}**\n\n{drawn}" if table.caption else drawn


def _pictures(block: Pictures) -> str:
    lines = [f"![{escape(picture.alt)}]({picture.name}.png)" for picture in block.pictures]
    return "\n".join(lines) + f"\n\n*{escape(block.caption)}*"
