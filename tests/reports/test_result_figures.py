import numpy as np
import pytest

from sft_jax.metrics.calibration import reliability
from sft_jax.reports.figures import result_figures
from sft_jax.reports.figures.result_figures import Band, Point
from sft_jax.tasks.blocks import Intervals, Lines
from sft_jax.types import DataError


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def reliability_lines(bins):
    return Lines(
        name="reliability",
        curves={name: (found.confidence, found.accuracy) for name, found in bins.items()},
        x_label="confidence",
        y_label="accuracy",
        alt="x",
        diagonal=True,
        counts={name: found.count for name, found in bins.items()},
    )


def interval_rows(rows, difference=False):
    ends = ("value", "low", "high")
    named = {name: dict(zip(ends, row, strict=True)) for name, row in rows.items()}
    return Intervals(name="x", rows=named, title="change", alt="x", difference=difference)


def test_frontier_by_hand():
    points = [
        Point("dear and good", 4.0, 0.9),
        Point("cheap", 1.0, 0.5),
        Point("beaten", 2.0, 0.5),
        Point("as cheap but better", 1.0, 0.6),
        Point("the same again", 4.0, 0.9),
        Point("between", 3.0, 0.7),
    ]
    assert result_figures.frontier(points) == [3, 5, 0]


def test_pareto_names_every_point_it_has_room_for():
    points = [Point(f"setting {i}", 2.0**i, 0.5 + 0.1 * i, 0.01) for i in range(4)]
    (axes,) = result_figures.pareto(points, "top1", "GFLOP").axes
    assert [text.get_text() for text in axes.texts] == [point.label for point in points]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    crowd = [Point(f"a rather long name {i}", 1.0, 0.5) for i in range(40)]
    (axes,) = result_figures.pareto(crowd, "top1", "GFLOP").axes
    assert 1 <= len(axes.texts) < 40


def test_reliability_of_one_model_shows_how_many_samples_a_bin_has():
    probabilities = np.array([[0.62, 0.38], [0.62, 0.38], [0.9, 0.1], [0.9, 0.1]])
    found = reliability(probabilities, np.array([0, 1, 0, 0]), num_bins=5)
    upper, lower = result_figures.lines(reliability_lines({"test": found})).axes
    np.testing.assert_allclose(lines_of(upper)["test"], [[0.62, 0.5], [0.9, 1.0]])
    assert [bar.get_height() for bar in lower.patches] == [0, 0, 0, 0.5, 0.5]


def test_reliability_of_several_models_leaves_out_rare_bins():
    probabilities = np.array([[0.9, 0.1]] * 199 + [[0.5, 0.5]])
    found = reliability(probabilities, np.zeros(200, int), num_bins=5)
    (axes,) = result_figures.lines(reliability_lines({"a": found, "b": found})).axes
    assert lines_of(axes)["a"].tolist() == [pytest.approx([0.9, 1.0])]


def test_a_band_is_one_deviation_to_both_sides():
    band = Band(np.array([1, 2]), np.array([0.5, 0.6]), np.array([0.1, 0.0]))
    (axes,) = result_figures.bands({"sft": band}, "valid top1", "step", as_share=True).axes
    assert lines_of(axes)["sft"].tolist() == [[1, 0.5], [2, 0.6]]
    corners = axes.collections[0].get_paths()[0].vertices
    assert {(1.0, 0.4), (1.0, 0.6), (2.0, 0.6)} <= {tuple(c) for c in corners.round(6).tolist()}


def test_more_curves_than_colours_differ_in_their_dashes():
    band = Band(np.array([1]), np.array([0.5]), np.array([0.0]))
    (axes,) = result_figures.bands({str(i): band for i in range(14)}, "t", "step", False).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 14


def test_intervals_of_differences_are_in_points():
    rows = {"a": (-0.25, -0.5, 0.0), "b": (0.125, None, None)}
    (axes,) = result_figures.intervals(interval_rows(rows, difference=True)).axes
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert [[-50, 0], [0, 0]] in drawn
    assert [[12.5, 1]] in drawn
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]


def test_dots_of_settings_and_conditions():
    points = [np.array([0.5, 0.7]), np.array([0.4])]
    (axes,) = result_figures.setting_dots(["a", "b"], points, [0.1, None], "top1").axes
    drawn = [line.get_xydata().round(6).tolist() for line in axes.lines]
    assert drawn == [
        [[0.5, 0], [0.7, 0]],
        [[0.5, 0], [0.7, 0]],
        [[0.6, 0]],
        [[0.4, 1]],
        [[0.4, 1]],
    ]
    scores = {"complete": [0.9, 0.8], "without x": [None, 0.5]}
    (axes,) = result_figures.condition_dots(["a", "b"], scores, "top1").axes
    assert lines_of(axes)["without x"].tolist() == [[0.5, 1]]


def test_token_frequency_draws_shares():
    (axes,) = result_figures.token_frequency(np.array([0.5, 0.0, 1.0]), 0.5, "m0").axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.0, 1.0]
    assert [text.get_text() for text in axes.texts] == ["- - all alike: 50%"]


def test_nothing_to_draw_is_an_error():
    for draw in (
        lambda: result_figures.lines(reliability_lines({})),
        lambda: result_figures.intervals(interval_rows({})),
        lambda: result_figures.bands({}, "t", "step", True),
        lambda: result_figures.pareto([], "t", "GFLOP"),
    ):
        with pytest.raises(DataError, match="found none, expected at least one"):
            draw()
