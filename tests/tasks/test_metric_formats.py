"""Values, differences and intervals of a metric as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.tasks.base import Metric, metric_named

SHARE = Metric(name="a", title="A")
NUMBER = Metric(name="b", title="B", format="number", higher_is_better=False)


@pytest.mark.parametrize(
    ("metric", "value", "change", "spread"),
    [(SHARE, "25.0%", "+25.0", "25.0"), (NUMBER, "0.2500", "+0.2500", "0.2500")],
)
def test_a_value_by_hand(metric, value, change, spread):
    assert metric.value(0.25) == value
    assert metric.change(0.25) == change
    assert metric.spread(0.25) == spread
    estimate = {"value": 0.25, "low": 0.25, "high": 0.25}
    assert metric.interval(estimate) == f"{value} to {value}"
    assert metric.change_interval(estimate) == f"{change} to {change}"


@pytest.mark.parametrize("metric", [SHARE, NUMBER])
def test_an_undefined_value_has_no_text(metric):
    assert metric.value(None) is metric.change(None) is metric.spread(None) is None
    for low, high in ((None, None), (0.5, None), (None, 0.5)):
        estimate = {"value": 0.5, "low": low, "high": high}
        assert metric.interval(estimate) is metric.change_interval(estimate) is None


@given(st.floats(-1e3, 1e3))
def test_a_difference_always_has_a_sign(value):
    assert SHARE.change(value)[0] in "+-"
    assert NUMBER.change(value)[0] in "+-"


def test_an_unknown_metric_is_shown_as_a_number():
    metric = metric_named({"a": SHARE}, "new")
    assert (metric.name, metric.is_share) == ("new", False)
    assert metric_named({"a": SHARE}, "a") is SHARE
