"""The tables of docs/results.md are those of the committed studies."""

from pathlib import Path

import pytest

from sft_jax.analysis.study_folder import read_study_folder
from sft_jax.analysis.study_scores import condition_rows, cost_rows, setting_rows
from sft_jax.analysis.tables import format_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()


@pytest.mark.parametrize("name", ["fusion", "training"])
def test_tables_are_those_that_the_study_gives(name):
    found = read_study_folder(ROOT / "docs" / "results" / name)
    metric = found.record["metric"]
    for level in found.levels:
        assert format_table(setting_rows(found, level, metric)) in PAGE
    assert format_table(cost_rows(found)) in PAGE
    assert format_table(condition_rows(found, "sample", metric)) in PAGE
    assert found.record["protocol"] in " ".join(PAGE.split())
