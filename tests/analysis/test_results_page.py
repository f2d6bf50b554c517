"""The tables of the pages are those of the committed studies."""

import re
from pathlib import Path

import pytest

from sft_jax.analysis.study_folder import read_study_folder
from sft_jax.analysis.study_scores import condition_rows, cost_rows, setting_rows
from sft_jax.analysis.tables import format_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()
SPEED = (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("name", ["fusion", "training"])
def test_tables_are_those_that_the_study_gives(name):
    found = read_study_folder(ROOT / "docs" / "results" / name)
    metric = found.record["metric"]
    for level in found.levels:
        assert format_table(setting_rows(found, level, metric)) in PAGE
    assert format_table(cost_rows(found)) in PAGE
    assert format_table(condition_rows(found, "sample", metric)) in PAGE
    assert found.record["protocol"] in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("setting", "pool", "attention"),
    [
        ("attn_topk", "attn_topk", "dense"),
        ("sft", "cls_topk", "dense"),
        ("fixed", "cls_topk", "fixed"),
    ],
)
def test_accuracy_beside_speed_is_that_of_the_study(setting, pool, attention):
    """The short table of docs/performance.md repeats numbers of the study."""
    found = read_study_folder(ROOT / "docs" / "results" / "fusion")
    cells = [next(row["MFLOP"] for row in cost_rows(found) if row["setting"] == setting)]
    for level in ("sample", "group"):
        rows = setting_rows(found, level, "top1")
        row = next(row for row in rows if row["setting"] == setting)
        cells += [row["top1"], row["sd over seeds"]]
    expected = [pool, attention, *map(str, cells)]
    lines = [re.split(r" *\| *", line.strip("| ")) for line in SPEED.splitlines()]
    assert expected in lines
