"""Draws the sections of a report that a task describes as data."""

from matplotlib.figure import Figure

from sft_jax.reports.document import Block, Picture, Pictures, Section, slug
from sft_jax.reports.figures import result_figures, run_figures
from sft_jax.tasks.base import FigureBlock, Heatmap, Intervals, Plot, ReportSection


def draw_section(section: ReportSection) -> Section:
    """The section with its figures drawn."""
    blocks: list[Block] = []
    for block in section.blocks:
        if isinstance(block, FigureBlock):
            pictures = [Picture(slug(plot.name), draw(plot), plot.alt) for plot in block.figures]
            blocks.append(Pictures(pictures, block.caption))
        else:
            blocks.append(block)
    return Section(section.title, blocks)


def draw(plot: Plot) -> Figure:
    """A figure that a task describes."""
    if isinstance(plot, Heatmap):
        return run_figures.confusion_matrix(
            plot.values, plot.labels, x_label=plot.x_label, y_label=plot.y_label
        )
    if isinstance(plot, Intervals):
        return result_figures.intervals(plot)
    return result_figures.lines(plot)
