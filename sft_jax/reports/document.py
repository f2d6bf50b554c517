"""What a report consists of, whatever it is written in: sections of text, tables and figures.

`analysis.markdown` and `analysis.page` write a `Document` down. Text is plain; whoever writes it
escapes it.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text as MatplotlibText

WIDE = 6.5  # inches


@dataclasses.dataclass(frozen=True)
class Mono:
    """A word in a sentence that is set as code: a file, a metric, a setting."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        parts: strings, with `Mono` between them.
    """

    parts: Sequence[str | Mono]

    @classmethod
    def of(cls, *parts: str | Mono) -> "Text":
        """A paragraph of these parts."""
        return cls(parts)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        rows: see `tables.grid`.
        caption: what it shows, a few words; empty for none.
    """

    rows: Sequence[Mapping[str, Any]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: of its file, without ending.
        figure: what is drawn.
        alt: what can be seen, for who cannot see it.
    """

    name: str
    figure: Figure
    alt: str

    def __post_init__(self):
        # A name with dollars in it is no formula.
        for text in self.figure.findobj(MatplotlibText):
            text.set_parse_math(False)

    @property
    def wide(self) -> bool:
        """Whether it needs the whole width of a page."""
        return bool(self.figure.get_figwidth() > WIDE)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Figures that belong together, side by side where there is room.

    Attributes:
        pictures: the figures.
        caption: what they show.
    """

    pictures: Sequence[Picture]
    caption: str


@dataclasses.dataclass(frozen=True)
class Commands:
    """Command lines, one or several."""

    text: str


Block = Text | Table | Pictures | Commands


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A number to see first: what it is, its value, and what qualifies it."""

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        kind: what it reports on: "run", "runs", "study".
        title: its heading.
        lead: what it is about, in a sentence or two.
        headlines: the numbers to see first.
        sections: in order.
    """

    kind: str
    title: str
    lead: Text
    headlines: Sequence[Headline]
    sections: Sequence[Section]

    def pictures(self) -> Iterator[Picture]:
        """All figures, in order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Pictures):
                    yield from block.pictures


def slug(text: str) -> str:
    """A name for files and anchors: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
