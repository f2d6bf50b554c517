import time

import numpy as np
import pytest

from sft_jax.efficiency import attention_benchmark
from sft_jax.efficiency.throughput import time_interleaved
from sft_jax.types import ConfigError


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


def test_every_implementation_is_compared_with_the_first_in_each_pass():
    names = ["xla", "streamed", "fixed"]
    result = attention_benchmark.compare(
        names, ["2", "97", "2", "4"], ["16", "32"], True, True, 1, 1
    )
    (rows,) = result.tables.values()
    assert [(row["pass"], row["attention"]) for row in rows] == [
        (direction, name)
        for direction in ("forward", "forward + backward")
        for name in ("xla", "streamed", "fixed, stride 16", "fixed, stride 32")
    ]
    assert [row["times faster"] for row in rows if row["attention"] == "xla"] == [1.0, 1.0]
    assert all(row["times smaller"] > 1 for row in rows if row["attention"] != "xla")
    assert "b 2, t 97, h 2, e 4, saliency True, masked True" in result.note
    assert result.numbers["attention"] == rows


def test_block_sparse_attention_needs_less_memory_than_streamed_without_a_mask():
    result = attention_benchmark.compare(
        ["streamed", "fixed"], (2, 513, 2, 4), (16,), False, False, repeats=1, window=2
    )
    (rows,) = result.tables.values()
    assert [row["attention"] for row in rows] == ["streamed", "fixed, stride 16"] * 2
    assert all(row["times smaller"] > 1 for row in rows if "fixed" in row["attention"])


@pytest.mark.parametrize(
    ("names", "shape", "strides", "words"),
    [
        (["dense"], [2, 9, 2, 4], [2], "attention: given 'dense', expected one of xla"),
        (["xla"], [2, 9, 2], [2], "shape: given 3 sizes, expected four"),
        (["xla"], [2, "many", 2, 4], [2], "shape: given .*expected positive whole numbers"),
        (["xla"], [2, 0, 2, 4], [2], "shape: given .*expected positive whole numbers"),
        (["fixed"], [2, 9, 2, 4], ["-1"], "strides: given .*expected positive whole numbers"),
    ],
)
def test_sizes_that_are_none_are_refused(names, shape, strides, words):
    with pytest.raises(ConfigError, match=words):
        attention_benchmark.compare(names, shape, strides, True, True, 1, 1)


def test_the_compared_functions_are_the_named_attention():
    qkv, arguments = attention_benchmark._inputs((2, 65, 2, 4), saliency=True, masked=True)
    assert arguments["key_mask"].sum(axis=1).tolist() == [49, 65]
    dense = attention_benchmark._dense("xla", arguments)(qkv)
    np.testing.assert_allclose(
        attention_benchmark._dense("streamed", arguments)(qkv)[1], dense[1], atol=1e-6
    )
    # Rows of the map sum to 1, so the saliency does with weights that do.
    np.testing.assert_allclose(dense.saliency.sum(axis=1), 1, rtol=1e-5)
    assert attention_benchmark._inputs((2, 65, 2, 4), saliency=False, masked=False)[1] == {
        "key_mask": None,
        "query_weights": None,
    }
