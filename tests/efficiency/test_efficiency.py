import time

import numpy as np
import pytest

from sft_jax.efficiency import attention_benchmark
from sft_jax.efficiency.throughput import time_interleaved


def test_calls_are_timed_in_turn_after_one_round_that_does_not_count():
    order = []
    timings = time_interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2
    )
    assert order == ["a", "b"] * 3
    assert list(timings) == ["a", "b"]


def test_timing_orders_low_median_high_and_counts_sleep():
    pauses = iter([0.0, 0.03, 0.01, 0.02])
    timing = time_interleaved({"sleep": lambda: time.sleep(next(pauses))}, repeats=3)["sleep"]
    assert 0.01 <= timing.low <= timing.median <= timing.high
    assert timing.low < timing.median < timing.high
    assert timing.median >= 0.02


def test_comparison_has_a_row_for_each_pass_and_implementation_and_streams_in_less_memory():
    rows = attention_benchmark.compare(
        batch=2, tokens=96, heads=2, head_width=4, saliency=True, repeats=1
    )
    assert [(row["pass"], row["attention"]) for row in rows] == [
        ("forward", "xla"),
        ("forward", "streamed"),
        ("forward + backward", "xla"),
        ("forward + backward", "streamed"),
    ]
    assert [row["times faster"] for row in rows if row["attention"] == "xla"] == [1.0, 1.0]
    assert all(row["times smaller"] > 1 for row in rows if row["attention"] == "streamed")


@pytest.mark.parametrize("masked", [False, True])
def test_comparison_of_the_fixed_pattern_is_against_streamed(masked):
    rows = attention_benchmark.compare_fixed(
        batch=2,
        tokens=512,
        heads=2,
        head_width=4,
        saliency=masked,
        masked=masked,
        strides=(16, 64),
        repeats=1,
    )
    assert [(row["pass"], row["attention"]) for row in rows] == [
        (direction, name)
        for direction in ("forward", "forward + backward")
        for name in ("streamed", "fixed, stride 16", "fixed, stride 64")
    ]
    assert [row["times faster"] for row in rows if row["attention"] == "streamed"] == [1.0, 1.0]
    assert all(row["times smaller"] > 1 for row in rows if "fixed" in row["attention"])


def test_what_is_compared_is_the_attention_named():
    qkv, arguments = attention_benchmark._inputs(2, 65, 2, 4, saliency=True, masked=True)
    assert arguments["key_mask"].sum(axis=1).tolist() == [49, 65]
    dense = attention_benchmark._dense("xla", arguments)(qkv)
    np.testing.assert_allclose(
        attention_benchmark._dense("streamed", arguments)(qkv)[1], dense[1], atol=1e-6
    )
    # Rows of the map sum to 1, so the saliency does with weights that do.
    np.testing.assert_allclose(dense.saliency.sum(axis=1), 1, rtol=1e-5)
    assert attention_benchmark._inputs(2, 65, 2, 4, saliency=False, masked=False)[1] == {
        "key_mask": None,
        "query_weights": None,
    }
