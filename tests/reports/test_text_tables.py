import re

from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.reports import text_tables


def test_format_table_by_hand():
    rows = [
        {"name": "a|b", "value": 0.123456, "share": "5.0%", "n": 3},
        {"name": "c", "value": None, "share": "12.5%", "n": 12000},
        {"name": "d", "n": 1, "more": "x\ny"},
    ]
    assert text_tables.format_table(rows) == "\n".join(
        [
            "| name |  value | share |     n | more |",
            "| ---- | -----: | ----: | ----: | ---- |",
            "| a\\|b | 0.1235 |  5.0% |     3 | -    |",
            "| c    |      - | 12.5% | 12000 | -    |",
            "| d    |      - |     - |     1 | x y  |",
        ]
    )


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.none() | st.integers() | st.text(max_size=5)),
        min_size=1,
        max_size=4,
    ).filter(any)
)
@settings(max_examples=300, deadline=None)
def test_format_table_is_a_rectangle_that_markdown_can_read(rows):
    lines = text_tables.format_table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({len(line) for line in lines}) == 1
    columns = {key for row in rows for key in row}
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == len(columns) + 1
