import numpy as np
import pytest

from sft_jax.reports.figures import plan_figures
from sft_jax.types import DataError


def model(capacity, **parts):
    names = ("parameters", "optimizer", "batch", "padding", "temporary", "program")
    sizes = {name: parts.get(name, 0) * 10**6 for name in names}
    return {"memory": {**sizes, "activations": 10**9, "capacity": capacity * 10**6}}


def test_bars_of_memory_are_parts_on_top_of_each_other():
    models = {"sft": model(100, parameters=1, temporary=5), "mbt": model(100, temporary=60)}
    figure = plan_figures.memory_bars(models)
    (axes,) = figure.axes
    bars = {bars.get_label(): bars for bars in axes.containers}
    assert [bar.get_width() for bar in bars["temporary"]] == [5, 60]
    assert [bar.get_x() for bar in bars["temporary"]] == [1, 0]
    assert [text.get_text().strip() for text in axes.texts] == ["6 MB", "60 MB"]
    (limit,) = axes.lines
    assert set(limit.get_xdata()) == {100}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sft", "mbt"]


def test_a_cpu_has_no_limit_to_draw():
    (axes,) = plan_figures.memory_bars({"sft": model(0, batch=1)}).axes
    assert list(axes.lines) == []
    with pytest.raises(DataError, match="models: found none"):
        plan_figures.memory_bars({})


def topology(**seconds):
    return {"models": {"sft": {"batch_size": 24, "seconds_at_best": seconds}}}


def test_points_are_milliseconds_of_what_a_step_is_spent_on():
    found = {
        "v5e:1x1": topology(products=2e-3, memory=1e-3, network=0.0),
        "cpu:8": topology(),
        "v5e:4x4": topology(products=4e-3, memory=8e-3, network=1e-3),
    }
    (axes,) = plan_figures.time_points(found, "sft").axes
    values = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(values["products"], [2, 4])
    np.testing.assert_allclose(values["memory"], [1, 8])
    np.testing.assert_allclose(values["network"], [np.nan, 1])
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["v5e:1x1\nbatch 24", "v5e:4x4\nbatch 24"]


def test_a_model_without_times_is_an_error():
    with pytest.raises(DataError, match="found no times of 'mbt' in cpu:8"):
        plan_figures.time_points({"cpu:8": topology(products=1.0)}, "mbt")
    with pytest.raises(DataError, match="plan for chips whose speeds are published"):
        plan_figures.time_points({"cpu:8": topology()}, "sft")


def test_a_whole_number_beyond_64_bits_is_drawn():
    parts = ("parameters", "optimizer", "batch", "padding", "temporary", "program", "capacity")
    figure = plan_figures.memory_bars({"sft": {"memory": dict.fromkeys(parts, 10**29)}})
    assert figure.axes[0].patches[0].get_width() == 1e23
