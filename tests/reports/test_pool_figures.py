import numpy as np
import pytest

from sft_jax.reports.figures import pool_figures
from sft_jax.runs.example_file import Example
from sft_jax.types import DataError


def recording(kept, saliency=None):
    """Four tokens of two steps, at two steps a second."""
    return Example(
        signals={"m": np.arange(8.0)[:, None]},
        kept={"m": np.asarray(kept)},
        saliency={} if saliency is None else {"m": np.asarray(saliency)},
        spans={"m": np.array([[0, 2], [2, 4], [4, 6], [6, 8]])},
        sampling_rate=2.0,
        title="one",
    )


def test_shades_are_saliency_over_its_mean_where_the_token_lies():
    figure = pool_figures.saliency_shades(recording([2, 0, 3, 1], [0.6, 0.2, 0.2, 0.0]))
    panel = figure.axes[0]
    places = [(patch.get_x(), patch.get_width()) for patch in panel.patches]
    np.testing.assert_allclose(places, [(-0.25, 1), (0.75, 1), (1.75, 1), (2.75, 1)])
    shares = pool_figures._relative_saliency(recording([2, 0, 3, 1], [0.6, 0.2, 0.2, 0.0]), "m")
    np.testing.assert_allclose(shares, [0.8, 0.0, 2.4, 0.8])
    tones = [sum(patch.get_facecolor()[:3]) for patch in panel.patches]
    assert tones[2] < tones[0] == tones[3] < tones[1]  # darker is more salient
    (line,) = panel.lines
    np.testing.assert_allclose(line.get_xydata(), np.stack([np.arange(8) / 2, np.arange(8)], 1))


def test_shades_need_the_saliency_of_every_token():
    with pytest.raises(DataError, match="found that of 2 tokens, expected all 4"):
        pool_figures.saliency_shades(recording([2, 0, -1], [0.6, 0.2, 0.0]))
    with pytest.raises(DataError, match="found that of 0 tokens"):
        pool_figures.saliency_shades(recording([0, 1, 2, 3]))


def test_every_pool_has_a_row_of_what_it_kept():
    figure = pool_figures.kept_by_pool({"a": recording([3, 0, 1]), "b": recording([-1, 2])})
    signal, rows = figure.axes
    assert signal.get_title(loc="left") == "m"
    assert [label.get_text() for label in rows.get_yticklabels()] == ["a", "b"]
    intervals = [
        sorted((path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths())
        for bars in rows.collections
    ]
    # Tokens that touch are one bar; an empty slot is none.
    np.testing.assert_allclose(intervals[0], [(-0.25, 1.75), (2.75, 3.75)])
    np.testing.assert_allclose(intervals[1], [(1.75, 2.75)])
    assert rows.yaxis_inverted()  # the first pool is at the top
    with pytest.raises(DataError, match="examples: found none"):
        pool_figures.kept_by_pool({})


def test_accuracy_is_a_line_a_pool_and_a_level_where_there_is_one_point():
    points = [
        {"pool": "a", "tokens": 8, "accuracy": 0.75},
        {"pool": "a", "tokens": 2, "accuracy": 0.5},
        {"pool": "none", "tokens": 64, "accuracy": 0.875},
    ]
    figure = pool_figures.accuracy_lines(points)
    (axes,) = figure.axes
    line, level = axes.lines
    assert line.get_xydata().tolist() == [[2, 0.5], [8, 0.75]]
    assert set(level.get_ydata()) == {0.875}
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["a", "none (64 tokens)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8", "64"]
    with pytest.raises(DataError, match="points: found none"):
        pool_figures.accuracy_lines([])
