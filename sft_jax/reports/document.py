"""Content of a report, independent of the format it is written in.

`markdown` and `html_page` render a `Document`. Text is plain; the renderers escape it.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure
from matplotlib.text import Text as MatplotlibText

from sft_jax.tasks.blocks import TableBlock, TextBlock

WIDE = 6.5  # inches


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: Name of its file, without suffix.
        figure: The figure.
        alt: Description for readers who cannot see it.
    """

    name: str
    figure: Figure
    alt: str

    def __post_init__(self):
        # Names may contain dollar signs, which matplotlib would parse as formulas.
        for text in self.figure.findobj(MatplotlibText):
            text.set_parse_math(False)

    @property
    def wide(self) -> bool:
        """Whether the figure needs the full width of a page."""
        return bool(self.figure.get_figwidth() > WIDE)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Figures that belong together, side by side if there is room, with one caption."""

    pictures: Sequence[Picture]
    caption: str


@dataclasses.dataclass(frozen=True)
class Commands:
    """One or several command lines."""

    text: str


Block = TextBlock | TableBlock | Pictures | Commands


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A number shown at the top: label, value, and a note such as an interval."""

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        kind: Subject of the report, "run", "runs" or "study".
        title: Heading.
        lead: Summary in a sentence or two.
        headlines: Numbers shown at the top.
        sections: Sections in order.
    """

    kind: str
    title: str
    lead: TextBlock
    headlines: Sequence[Headline]
    sections: Sequence[Section]

    def pictures(self) -> Iterator[Picture]:
        """All figures, in order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Pictures):
                    yield from block.pictures


def slug(text: str) -> str:
    """A name for files and anchors: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
