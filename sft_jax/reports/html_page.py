"""Renders a report as one HTML page that has no scripts and loads no other files."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import matplotlib

from sft_jax.reports.document import (
    Block,
    Commands,
    Document,
    Headline,
    Picture,
    Pictures,
    Section,
    slug,
)
from sft_jax.reports.text_tables import grid
from sft_jax.tasks.blocks import Code, TableBlock, TextBlock
from sft_jax.version import __version__

_LONG = 48  # characters of a cell that is wrapped
_NUMBER = r"[-+\u2212]?[\d.,]+(?:e[-+]?\d+)?%?"
_NUMERIC = re.compile(rf"-|{_NUMBER}(?: (?:to|of|\u00b1) {_NUMBER})?")
_KINDS = {"run": "Report of a run", "runs": "Report of several runs", "study": "Report of a study"}

_FIGURE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Colors of text, lines and backgrounds in figures: as drawn, and in the light and the dark color
# scheme. Colors of data are the same in both.
_FIGURE_COLORS = {
    "ink": ("#000000", "#1d2329", "#e4e7ea"),
    "frame": ("#555555", "#5c6670", "#98a2ac"),
    "grid": ("#e5e5e5", "#e5e8eb", "#2b3138"),
    "absent": ("#e8e8e8", "#e8e8e8", "#2b3138"),
    "rust": ("#a34700", "#a34700", "#f0a06a"),
    "blue": ("#0072b2", "#0072b2", "#3d9fd6"),
    "kept": ("#f2dc9b", "#f2dc9b", "#6d5c26"),
}


def render(document: Document) -> str:
    """The report as HTML, in light or dark colors as the reader prefers."""
    sections = "\n".join(map(_section, document.sections))
    links = "".join(
        f'<li><a href="#{slug(section.title)}">{escape(section.title)}</a></li>'
        for section in document.sections
    )
    headlines = "".join(map(_headline, document.headlines))
    style = resources.files(__package__).joinpath("report.css").read_text()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(document.title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kind">{_KINDS[document.kind]}</p>
<h1>{escape(document.title)}</h1>
<p class="lead">{_inline(document.lead)}</p>
{f'<dl class="headlines">{headlines}</dl>' if headlines else ""}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{sections}
</main>
<footer>Written by <code>sft_jax.report</code>, version {escape(__version__)}. The same tables are
in <code>report.md</code> beside this page.</footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    title = f"<h2>{escape(section.title)}</h2>"
    return f'<section id="{slug(section.title)}">\n{title}\n{blocks}\n</section>'


def _headline(headline: Headline) -> str:
    note = f'<dd class="note">{escape(headline.note)}</dd>' if headline.note else ""
    return (
        f"<div><dt>{escape(headline.label)}</dt>"
        f'<dd class="value">{escape(headline.value)}</dd>{note}</div>'
    )


def _block(block: Block) -> str:
    if isinstance(block, TextBlock):
        return f"<p>{_inline(block)}</p>"
    if isinstance(block, TableBlock):
        return _table(block)
    if isinstance(block, Commands):
        return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
    return _pictures(block)


def _inline(text: TextBlock) -> str:
    return "".join(
        f"<code>{escape(part.text)}</code>" if isinstance(part, Code) else escape(part)
        for part in text.parts
    )


def _table(table: TableBlock) -> str:
    """A table in a box that scrolls if the screen is narrow."""
    columns, *lines = grid(table.rows)
    classes = [_column_class([line[i] for line in lines]) for i in range(len(columns))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for name, kind in zip(columns, classes, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row"{kind}>{escape(text)}</th>'
            if i == 0
            else f"<td{kind}>{_or_dash(text)}</td>"
            for i, (text, kind) in enumerate(zip(line, classes, strict=True))
        )
        + "</tr>"
        for line in lines
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    name = escape(table.caption or "Table")
    return (
        f'{caption}<div class="scroll" role="region" tabindex="0" aria-label="{name}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _column_class(texts: Sequence[str]) -> str:
    """CSS class of a column: numbers are aligned right, long text is wrapped."""
    if all(_NUMERIC.fullmatch(text) for text in texts):
        return ' class="number"'
    return ' class="long"' if max(map(len, texts)) > _LONG else ""


def _or_dash(text: str) -> str:
    return '<span class="none">\u2013</span>' if text == "-" else escape(text)


def _pictures(block: Pictures) -> str:
    count = "one" if len(block.pictures) == 1 else "several"
    images = "".join(map(_image, block.pictures))
    return (
        f'<figure><div class="pictures {count}">{images}</div>'
        f"<figcaption>{escape(block.caption)}</figcaption></figure>"
    )


def _image(picture: Picture) -> str:
    width, height = (round(96 * inches) for inches in picture.figure.get_size_inches())
    data = base64.b64encode(svg(picture).encode()).decode()
    image = (
        f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(picture.alt)}" '
        f'width="{width}" height="{height}">'
    )
    if picture.wide:
        name = escape(picture.alt)
        return (
            f'<div class="scroll wide" role="region" tabindex="0" aria-label="{name}">{image}</div>'
        )
    return f"<div>{image}</div>"


def svg(picture: Picture) -> str:
    """A figure as SVG with real text, in light or dark colors as the reader prefers."""
    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": picture.name}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # metadata holds URLs
    with matplotlib.rc_context(settings):
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for name, (drawn, _, _) in _FIGURE_COLORS.items():
        text = re.sub(rf"(fill|stroke): {drawn}\b", rf"\1: var(--{name})", text, flags=re.I)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FIGURE_FONT, text)
    opened = text.index(">") + 1
    return f"{text[:opened]}<style>{_figure_style()}</style>{text[opened:]}"


def _figure_style() -> str:
    """Style sheet of a figure; an image on a page does not see the style of the page."""
    light, dark = (
        "".join(f"--{name}:{colors[scheme]};" for name, colors in _FIGURE_COLORS.items())
        for scheme in (1, 2)
    )
    return (
        f"svg{{{light}}}text{{fill:var(--ink)}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    )
