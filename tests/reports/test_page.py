import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from sft_jax.reports import html_page, markdown, report_writer, text_tables
from sft_jax.reports.document import (
    Commands,
    Document,
    Headline,
    Picture,
    Pictures,
    Section,
    slug,
)
from sft_jax.tasks.blocks import Code, TableBlock, TextBlock

HOSTILE = r'$\bad{$ <script>alert("1")</script> & <img src=x onerror=y> | `a` *b* _c_ [d](http://e.example)'
# Elements that stand alone.
VOID = {"meta", "img", "link", "br", "hr", "input", "source"}


class Reader(HTMLParser):
    """What a page loads, what it shows, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.links, self.tags, self.open, self.text, self.styles = [], [], [], [], []
        self.rows, self.alts = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster"):
                self.links.append(value)
            if name == "alt":
                self.alts.append(value)
            if name == "style":
                self.styles.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def figure():
    drawn = Figure(figsize=(4, 3))
    axes = drawn.subplots()
    axes.plot([0, 1], [0, 1], color="#000000")
    axes.set_title(HOSTILE)
    axes.imshow(np.zeros((2, 2)))
    return drawn


@pytest.fixture
def hostile():
    """A document in which every name wants to be something else."""
    rows = [{"name": HOSTILE, HOSTILE: 0.5}, {"name": "b", HOSTILE: None}]
    blocks = [
        TextBlock.of(HOSTILE, Code("a<b")),
        TableBlock(rows, HOSTILE),
        Pictures([Picture("one", figure(), HOSTILE)], HOSTILE),
        Commands(f"echo '{HOSTILE}'"),
    ]
    headlines = [Headline(HOSTILE, HOSTILE, HOSTILE)]
    return Document("run", HOSTILE, TextBlock.of(HOSTILE), headlines, [Section(HOSTILE, blocks)])


def check_self_contained(text):
    """Nothing is loaded: no script, no other file, no address; returns what was read."""
    reader = Reader(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(reader.tags)
    for link in reader.links:
        assert link.startswith(("#", "data:image/svg+xml;base64,")), link
        if link.startswith("data:"):
            drawing = base64.b64decode(link.split(",")[1]).decode()
            inner = Reader(drawing)
            assert all(own.startswith(("#", "data:image/png;base64,")) for own in inner.links)
            assert "script" not in inner.tags
            assert not re.search(r"url\((?!['\"]?#)", drawing)
    assert not re.search(r"url\(|@import|expression", " ".join(reader.styles))
    anchors = [link[1:] for link in reader.links if link.startswith("#")]
    assert sorted(anchors) == sorted(re.findall(r'<section id="([^"]+)"', text))
    return reader


def test_hostile_names_are_shown_and_do_nothing(hostile):
    text = html_page.render(hostile)
    reader = check_self_contained(text)
    shown = "".join(reader.text)
    # Title, heading, lead, headline (3), navigation, section, paragraph, caption of the table, its
    # column and cell, caption of the figure, command.
    assert shown.count(HOSTILE) == 14
    assert reader.alts == [HOSTILE]
    assert ["name", HOSTILE] in reader.rows
    assert [HOSTILE, "0.5"] in reader.rows
    assert ["b", "\u2013"] in reader.rows


def test_hostile_names_in_markdown(hostile):
    text = markdown.render(hostile)
    prose = text.replace(hostile.sections[0].blocks[3].text, "").replace("`a<b`", "")
    assert not re.search(r"(?<!\\)<", prose)
    assert not re.search(r"(?<!\\)\]\(http", prose)
    assert not re.search(r"(?<![\\`])`a(?<!\\)`", prose)
    (row,) = [line for line in text.splitlines() if "0.5" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    # Taking the backslashes away gives the name back.
    assert re.sub(r"\\(.)", r"\1", markdown.escape(HOSTILE)) == HOSTILE


def test_code_in_markdown_does_not_end_at_a_backtick_of_its_own():
    hostile = "a`` <b>\n```\n<script>"
    blocks = [TextBlock.of(Code(hostile), Code("plain")), Commands(hostile)]
    text = markdown.render(Document("run", "t", TextBlock.of("l"), [], [Section("s", blocks)]))
    assert "```` a`` <b> ``` <script> `````plain`\n" in text
    assert f"\n````bash\n{hostile}\n````\n" in text


def test_words_with_underscores_stay_readable():
    assert markdown.escape("macro_f1 of a_b") == "macro_f1 of a_b"
    assert markdown.escape("_a_") == "\\_a\\_"


def test_numbers_stand_to_the_right_and_long_text_breaks():
    rows = [
        {
            "name": "a",
            "n": 3,
            "of": "2 of 3",
            "sd": "1.0% \u00b1 0.5",
            "to": "-1 to +2",
            "x": "w" * 60,
        },
        {"name": "b", "n": None, "of": "-", "sd": "1.25%", "to": "-", "x": "w" * 60},
    ]
    document = Document("run", "t", TextBlock.of(""), [], [Section("s", [TableBlock(rows)])])
    (head,) = re.findall(r"<thead>(.*?)</thead>", html_page.render(document))
    classes = [re.search(r'class="(\w+)"', cell) for cell in re.findall(r"<th[^>]*>", head)]
    found = [match and match[1] for match in classes]
    assert found == [None, "number", "number", "number", "number", "long"]


def test_inks_of_a_figure_follow_light_and_dark():
    drawing = html_page.svg(Picture("one", figure(), "x"))
    assert "stroke: var(--ink)" in drawing
    assert "prefers-color-scheme:dark" in drawing
    assert "DejaVu" not in drawing
    assert "&lt;script&gt;" in drawing  # text stays text
    # Equal figures give equal files.
    assert drawing == html_page.svg(Picture("one", figure(), "x"))


def test_wide_figures_scroll_in_a_box_of_their_own():
    wide = Picture("wide", Figure(figsize=(9, 3)), "a wide one")
    block = Pictures([wide], "c")
    text = html_page.render(Document("run", "t", TextBlock.of(""), [], [Section("s", [block])]))
    assert re.search(r'<div class="scroll wide"[^>]*aria-label="a wide one"><img', text)


def test_names_of_files():
    assert slug("SFT, k = 10 (ours)") == "sft_k_10_ours"
    assert slug("\u00b1") == "unnamed"


def cells_of_markdown(text):
    """Every row of the tables of a report, without rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    rows = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]
    return [row for row in rows if not all(re.fullmatch(r"-{2,}:?", cell) for cell in row)]


def same_tables(document):
    """Whether page and twin hold the same rows; the twin has a table of headlines on top."""
    reader = check_self_contained(html_page.render(document))
    shown = [["-" if cell == "\u2013" else cell for cell in row] for row in reader.rows]
    twin = cells_of_markdown(markdown.render(document))
    headlines = len(document.headlines) + 1 if document.headlines else 0
    assert shown == twin[headlines:]
    return shown


def test_page_and_twin_of_a_run_hold_the_same_tables(workdir):
    rows = same_tables(report_writer.read_document([workdir]))
    assert ["train", "70", "-", "10", "40", "10", "10"] in rows


def test_page_and_twin_of_a_study_hold_the_same_tables(study):
    folder = study(lambda setting, fold, seed: 0.5 + 0.1 * (setting == "sft"))
    rows = same_tables(report_writer.read_document([folder]))
    # In short, scores and conditions per sample and per group, other metrics, cost, calibration,
    # settings.
    assert sum(row[0] == "sft" for row in rows) == 9


def test_the_written_page_loads_nothing(workdir):
    reader = check_self_contained(
        report_writer.write_report(report_writer.read_document([workdir]), workdir).read_text()
    )
    assert len(reader.alts) == 3
    assert reader.tags.count("section") == 5


def test_a_dash_is_what_is_not_there():
    assert text_tables.grid([{"a": None}]) == [["a"], ["-"]]
