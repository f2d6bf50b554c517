"""What README tells a newcomer to type exists, and it stays short."""

import re

from doc_pages import ROOT

README = (ROOT / "README.md").read_text()


def test_one_screen():
    assert len(README.splitlines()) <= 80


def test_map_names_what_exists():
    text = (ROOT / "docs" / "code.md").read_text()
    found = re.findall(r"`((?:sft_jax|configs)/[\w/.]*)`", text)
    assert len(found) >= 8
    for path in found:
        assert (ROOT / path).exists(), path


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"^[A-Z_]+$", README, flags=re.MULTILINE) == []


def test_two_figures():
    figures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(figures) == 2
    for figure in figures:
        assert (ROOT / figure).is_file(), figure
