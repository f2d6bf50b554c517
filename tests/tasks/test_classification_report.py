"""Which sections a classifier has for the splits of one run, several runs, and pooled seeds."""

import numpy as np
import pytest

from sft_jax.tasks.base import Scored
from sft_jax.tasks.blocks import FigureBlock, Heatmap, Lines, TableBlock
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_metrics import METRICS

TASK = Classification(class_names=("a", "b"))
# Right with confidence 0.8 and 0.6, wrong with 0.8.
ROWS = np.array([[0.8, 0.2], [0.4, 0.6], [0.8, 0.2]], np.float32)
TARGET = np.array([0, 1, 1])


def entry(split="test", **more):
    return Scored(
        split=split,
        evaluation=None,
        answers={"probabilities": ROWS},
        target=TARGET,
        **more,
    )


def blocks_of(scored, kind):
    return [
        block
        for section in TASK.report(scored)
        for block in section.blocks
        if isinstance(block, kind)
    ]


def plots_of(scored, kind):
    plots = [plot for block in blocks_of(scored, FigureBlock) for plot in block.figures]
    return [plot for plot in plots if isinstance(plot, kind)]


def test_only_the_first_split_of_a_run_is_drawn():
    scored = {"test": entry(), "valid": entry("valid")}
    (heatmap,) = plots_of(scored, Heatmap)
    assert (heatmap.name, heatmap.alt) == ("confusion", "Confusion matrix on test")
    assert heatmap.values.tolist() == [[1, 0], [1, 1]]
    (lines,) = plots_of(scored, Lines)
    assert list(lines.curves) == ["test"]
    (table,) = blocks_of(scored, TableBlock)
    assert [row["split"] for row in table.rows] == ["test", "valid"]


def test_runs_are_drawn_side_by_side():
    scored = {"x": entry(), "y": entry()}
    assert [plot.name for plot in plots_of(scored, Heatmap)] == ["confusion_x", "confusion_y"]
    (table,) = blocks_of(scored, TableBlock)
    assert [row["run"] for row in table.rows] == ["x", "y"]


def test_seeds_are_scored_one_by_one_and_highlights_chosen_by_the_caller():
    seeds = np.array([0, 0, 7])
    scored = {"x": entry(seeds=seeds), "y": entry(seeds=seeds, highlighted=False)}
    assert [plot.name for plot in plots_of(scored, Heatmap)] == ["confusion_x"]
    (table,) = blocks_of(scored, TableBlock)
    row = table.rows[0]
    # Seed 0 is right twice, at 0.8 and 0.6: bins are off by 0.2 and 0.4. Seed 7 is off by 0.8.
    assert row["setting"] == "x"
    assert float(row["ECE"]) == pytest.approx(100 * (0.3 + 0.8) / 2, abs=0.05)
    assert float(row["sd over seeds"]) == pytest.approx(100 * 0.5 / np.sqrt(2), abs=0.06)
    assert row["mean confidence"] == "75.0%"
    assert row["top1"] == "50.0%"


def test_without_predictions_or_confusion_there_is_nothing_to_say():
    assert TASK.report({"x": Scored(split="test", evaluation=None, answers={}, target=None)}) == []


def test_every_metric_is_known_by_its_name_and_losses_are_better_lower():
    assert all(metric.name == name for name, metric in METRICS.items())
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {
        "loss",
        "mae",
    }
