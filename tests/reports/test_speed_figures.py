import numpy as np
import pytest
from matplotlib.figure import Figure

from sft_jax.reports.figures import speed_figures
from sft_jax.types import DataError


def rate(median, low, high):
    return {"samples_per_second": {"median": median, "low": low, "high": high}}


def texts_of(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]


def font_sizes(figure: Figure) -> list[float]:
    figure.draw_without_rendering()
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
    return [text.get_fontsize() for text in texts if getattr(text, "get_text", str)()]


def test_bars_are_medians_with_their_slowest_and_fastest_round():
    measured = {
        "sft": {"train": rate(20.0, 16.0, 21.0), "infer": rate(100.0, 90.0, 130.0)},
        "dense": {"train": rate(3.0, 2.5, 3.25), "infer": rate(16.0, 8.0, 17.0)},
    }
    figure = speed_figures.throughput_bars(measured)
    train, infer = figure.axes
    assert [bar.get_width() for bar in train.patches] == [20.0, 3.0]
    assert [bar.get_width() for bar in infer.patches] == [100.0, 16.0]
    (errors,) = infer.collections
    np.testing.assert_allclose(
        [segment[:, 0] for segment in errors.get_segments()], [(90, 130), (8, 17)]
    )
    assert [label.get_text() for label in train.get_yticklabels()] == ["sft", "dense"]
    assert train.yaxis_inverted()  # the first model is at the top
    assert train.get_xlim()[0] == infer.get_xlim()[0] == 0
    texts = texts_of(figure)
    assert {"Training", "Inference", "samples a second", "20", "3", "100", "16"} <= set(texts)
    assert min(font_sizes(figure)) >= 9


def point(value, model, milliseconds, size, axis="length"):
    """A sample's median time, from 20 % less to twice as much, and its temporary bytes."""
    median = 1e3 / milliseconds
    costs = {**rate(median, median / 2, median / 0.8), "temporary_bytes_per_sample": size}
    return {axis: value, "model": model, "train": costs, "infer": costs}


def test_lines_of_a_sweep_are_costs_of_a_sample():
    points = [
        point(1024, "sft", 10.0, 2e6),
        point(1024, "dense", 40.0, 8e6),
        point(4096, "sft", 40.0, 8e6),
        point(4096, "dense", 640.0, None),
    ]
    figure = speed_figures.sweep_lines(points, "length")
    times, _, memory, _ = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sft", "dense"]
    sft, dense = (container[0].get_xydata() for container in times.containers)
    np.testing.assert_allclose(sft, [(1024, 10), (4096, 40)])
    np.testing.assert_allclose(dense, [(1024, 40), (4096, 640)])
    bars = times.containers[0][2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [(8, 20), (32, 80)])
    np.testing.assert_allclose(memory.lines[0].get_ydata(), [2, 8])
    np.testing.assert_allclose(memory.lines[1].get_ydata(), [8, np.nan])
    assert times.get_xscale() == times.get_yscale() == "log"
    assert [label.get_text() for label in memory.get_xticklabels()] == ["1024", "4096"]
    texts = texts_of(figure)
    assert "Training: milliseconds a sample" in texts
    assert "Inference: temporary MB a sample" in texts
    assert min(font_sizes(figure)) >= 9


def test_a_sweep_of_words_keeps_their_order_on_a_plain_axis():
    points = [
        point("float32", "sft", 4.0, 1e6, "dtype"),
        point("bfloat16", "sft", 2.0, 1e6, "dtype"),
    ]
    figure = speed_figures.sweep_lines(points, "dtype")
    axes = figure.axes[2]
    figure.canvas.draw()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["float32", "bfloat16"]
    assert axes.get_xscale() == "linear"
    # Less than a decade still has numbers to read, and plain ones.
    written = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert {"2", "5"} <= written


def test_whole_numbers_of_any_size_are_drawn():
    points = [point(value, "sft", 10.0, 10**25) for value in (2**10, 2**70)]
    figure = speed_figures.sweep_lines(points, "length")
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["1024", str(2**70)]


def test_more_models_than_colours_have_looks_of_their_own():
    points = [point(value, f"model {i}", i + 1.0, 1e6) for value in (1, 2) for i in range(10)]
    lines = speed_figures.sweep_lines(points, "length").axes[2].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 10


def test_nothing_measured_is_an_error():
    with pytest.raises(DataError, match="measured: found no model"):
        speed_figures.throughput_bars({})
    with pytest.raises(DataError, match="points: found none"):
        speed_figures.sweep_lines([], "length")
    with pytest.raises(DataError, match=r"axis: found .*at most 100"):
        speed_figures.sweep_lines([point(1, "sft", 1.0, 1)], "length" * 20)


def test_a_roofline_is_the_lower_of_slope_and_peak_with_the_points_below():
    points = [
        {"model": "sft", "kind": "train", "flops_per_byte": 2.0, "flops_per_second": 10e9},
        {"model": "sft", "kind": "infer", "flops_per_byte": 40.0, "flops_per_second": 60e9},
        {"model": "mbt", "kind": "train", "flops_per_byte": 1.0, "flops_per_second": 5e9},
    ]
    figure = speed_figures.roofline(points, peak_flops=100e9, peak_bytes=10e9)
    (axes,) = figure.axes
    roof, *drawn = axes.lines
    for x, y in roof.get_xydata():
        assert y == pytest.approx(min(10 * x, 100))
    assert 10.0 in roof.get_xdata()  # the ridge
    np.testing.assert_allclose(
        [line.get_xydata()[0] for line in drawn], [(2, 10), (40, 60), (1, 5)]
    )
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert drawn[0].get_markerfacecolor() != drawn[1].get_markerfacecolor()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    texts = texts_of(figure)
    assert {"sft, training", "sft, inference", "mbt, training", "GFLOP/s"} <= set(texts)
    assert {"memory: 10 GB/s", "products: 100 GFLOP/s"} <= set(texts)
    assert min(font_sizes(figure)) >= 9
    with pytest.raises(DataError, match="points: found none"):
        speed_figures.roofline([], 1.0, 1.0)


@pytest.mark.parametrize(("low", "high"), [(11.0, 12.0), (8.0, 9.0)])
def test_a_median_outside_of_its_rounds_is_refused(low, high):
    rate = {"samples_per_second": {"median": 10.0, "low": low, "high": high}}
    with pytest.raises(DataError, match=r"models: .*low, median and high in this order"):
        speed_figures.throughput_bars({"sft": {"train": rate, "infer": rate}})
