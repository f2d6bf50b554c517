"""Parts of a report as data, which tasks return and `reports` draws."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Code:
    """Text of a paragraph that is set as code, such as a file or a setting."""

    text: str


@dataclasses.dataclass(frozen=True)
class TableBlock:
    """A table of a report; columns are the keys of its rows in order of first appearance."""

    rows: Sequence[Mapping[str, Any]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class TextBlock:
    """A paragraph of a report: plain text, with `Code` in between."""

    parts: Sequence[str | Code]

    @classmethod
    def of(cls, *parts: str | Code) -> "TextBlock":
        """A paragraph of these parts."""
        return cls(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Counts of pairs, such as true against predicted classes.

    Attributes:
        name: Name of the figure's file, without suffix.
        values: `[c, c]` counts.
        labels: Name of each row, and of each column.
        x_label: Meaning of the columns.
        y_label: Meaning of the rows.
        alt: Description for readers who cannot see the figure.
    """

    name: str
    values: np.ndarray
    labels: Sequence[str]
    x_label: str
    y_label: str
    alt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """Curves over a common axis, such as reliability diagrams.

    Attributes:
        name: Name of the figure's file, without suffix.
        curves: `{label: (x [p], y [p])}`; NaN leaves a gap.
        x_label: Meaning of the horizontal axis.
        y_label: Meaning of the vertical axis.
        alt: Description for readers who cannot see the figure.
        diagonal: Whether both axes are shares between 0 and 1, to be compared with `y = x`.
        counts: `{label: [p]}` samples in each of `p` equal bins of the horizontal axis from 0 to 1.
            A single curve gets a histogram of them; several curves leave out rare bins.
    """

    name: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    x_label: str
    y_label: str
    alt: str
    diagonal: bool = False
    counts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """Shares with their intervals, one a row.

    Attributes:
        name: Name of the figure's file, without suffix.
        rows: `{label: {value, low, high}}`; low and high are None if there is no interval.
        title: Title of the figure.
        alt: Description for readers who cannot see the figure.
        difference: Whether values are differences, drawn in percentage points around 0.
    """

    name: str
    rows: Mapping[str, Mapping[str, Any]]
    title: str
    alt: str
    difference: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scatter:
    """Predicted against true numbers, with the distribution of their differences.

    Attributes:
        name: Name of the figure's file, without suffix.
        x: True value of each sample `[n]`.
        y: Predicted value `[n]`.
        x_label: Meaning of the horizontal axis.
        y_label: Meaning of the vertical axis.
        alt: Description for readers who cannot see the figure.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_label: str
    y_label: str
    alt: str


Plot = Heatmap | Lines | Intervals | Scatter


@dataclasses.dataclass(frozen=True)
class FigureBlock:
    """Figures that belong together, with one caption."""

    figures: Sequence[Plot]
    caption: str


ReportBlock = TableBlock | TextBlock | FigureBlock


@dataclasses.dataclass(frozen=True)
class ReportSection:
    """A section of a report as data, for `reports` to draw."""

    title: str
    blocks: Sequence[ReportBlock]
