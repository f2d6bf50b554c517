"""The contract between a task and the rest of the package.

A task knows everything about what is being predicted. Training, studies and reports call it and
carry on whatever it returns, so that a new task is one module and one entry in `tasks.TASKS`.

Letters: `b` batch, `n` samples of a split, `o` outputs of the model's head.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

# A metric as it is summed up, over samples or not yet: divide the first by the second.
Sum = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's name and how to show it.

    Attributes:
        name: Key in logs, evaluations and tables.
        title: Name on the axis of a figure.
        format: `percent` for a share between 0 and 1, `number` for anything else.
        higher_is_better: Direction of improvement.
    """

    name: str
    title: str
    format: Literal["percent", "number"] = "percent"
    higher_is_better: bool = True

    @property
    def is_share(self) -> bool:
        """Whether values are shares between 0 and 1."""
        return self.format == "percent"

    def value(self, value: float | None) -> str | None:
        """A value as text: a percentage, or four decimals."""
        if value is None:
            return None
        return f"{value:.1%}" if self.is_share else f"{value:.4f}"

    def change(self, value: float | None) -> str | None:
        """A difference as text, with its sign; of shares in percentage points."""
        if value is None:
            return None
        return f"{100 * value:+.1f}" if self.is_share else f"{value:+.4f}"

    def spread(self, value: float | None) -> str | None:
        """A standard deviation as text; of shares in percentage points."""
        if value is None:
            return None
        return f"{100 * value:.1f}" if self.is_share else f"{value:.4f}"

    def interval(self, estimate: Mapping[str, Any]) -> str | None:
        """`low to high` of `{value, low, high}`; None if there is no interval."""
        low, high = self.value(estimate["low"]), self.value(estimate["high"])
        return None if low is None or high is None else f"{low} to {high}"

    def change_interval(self, estimate: Mapping[str, Any]) -> str | None:
        """`low to high` of a difference `{value, low, high}`; None if there is no interval."""
        low, high = self.change(estimate["low"]), self.change(estimate["high"])
        return None if low is None or high is None else f"{low} to {high}"


def metric_named(metrics: Mapping[str, Metric], name: str) -> Metric:
    """The metric of a name, as stored files have it; an unknown one is shown as a number."""
    return metrics.get(name) or Metric(name=name, title=name, format="number")


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


Plot = Heatmap | Lines | Intervals


@dataclasses.dataclass(frozen=True)
class FigureBlock:
    """Figures that belong together, with one caption."""

    figures: Sequence[Plot]
    caption: str


ReportBlock = TableBlock | TextBlock | FigureBlock


@dataclasses.dataclass(frozen=True)
class ReportSection:
    """A part of a report that depends on the task, as data; `reports` draws it."""

    title: str
    blocks: Sequence[ReportBlock]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """A split that was evaluated: of a run, or of one setting of a study with its runs pooled.

    Attributes:
        split: Name of the split.
        evaluation: What `Task.score` returned; None of a study's setting.
        answers: What `Task.answer` returned, `{name: [n, ...]}`; empty if none were stored.
        target: `[n, ...]` true targets, in the same order; None if none were stored.
        groups: Name of each sample's group if a bootstrap draws groups, else None.
        ids: Name of each sample, to pair the samples of several runs; None if not known.
        seeds: Seed of the run behind each sample if runs are pooled, else None.
        highlighted: Whether to draw figures of this entry alone, such as a confusion matrix.
    """

    split: str
    evaluation: Mapping[str, Any] | None
    answers: Mapping[str, np.ndarray]
    target: np.ndarray | None
    groups: np.ndarray | None = None
    ids: np.ndarray | None = None
    seeds: np.ndarray | None = None
    highlighted: bool = True

    def can_be_paired_with(self, other: "Scored") -> bool:
        """Whether both have answers for the same samples, targets and groups, in the same order."""
        if self.ids is None or other.ids is None:
            return False
        pairs = (
            (self.ids, other.ids),
            (self.target, other.target),
            (self.groups, other.groups),
        )
        return all(
            np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in pairs
        )


@runtime_checkable
class Task(Protocol):
    """What is predicted.

    Losses and sums are pure functions of arrays, traced into the compiled step. Scores are exact:
    they run on the host, over a whole split, in float64.
    """

    @property
    def output_size(self) -> int:
        """Number of outputs `o` of the model's head."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Every metric the task logs or scores, by name."""
        ...

    @property
    def main_metric(self) -> str:
        """Name of the metric that tables, studies and headlines show first."""
        ...

    @property
    def logged(self) -> Sequence[str]:
        """Names of what `sums` returns, which training logs and validates by; has `loss`."""
        ...

    @property
    def target_name(self) -> str:
        """Name of the entry that holds the true targets in files of predictions."""
        ...

    def loss(
        self, outputs: Float[Array, "b o"], target: Array
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Training loss of each sample, and what each sample counts for.

        The loss of a batch is `sum(weight * loss) / sum(weight * count)` over the global batch.
        """
        ...

    def sums(self, outputs: Float[Array, "b o"], target: Array) -> dict[str, Sum]:
        """Metrics of each sample as `{name: (sum [b], count [b])}`; cheap, they run in the step.

        The metric of a batch or a split is `sum(weight * sum) / sum(weight * count)`.
        """
        ...

    def answer(self, outputs: Any) -> dict[str, Any]:
        """What the model says of each sample, `{name: [b, ...]}`, from its outputs `[b, o]`.

        Traced for arrays of JAX; computed on the host in float64 for arrays of NumPy.
        """
        ...

    def values(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        times: np.ndarray | None = None,
    ) -> dict[str, float]:
        """The few exact metrics of studies and comparisons, `logged` among them, by name.

        Args:
            answers: What `answer` returned, and possibly `loss`, the loss of each sample that
                `sums` returned.
            target: `[n, ...]` true targets.
            times: `[n]` how often each sample counts; once where left out.
        """
        ...

    def group(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Answers and targets of groups of samples `[g, ...]`, in order of the groups' names."""
        ...

    def score(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        *,
        split: str,
        step: int,
        groups: np.ndarray | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Exact metrics of a split with baseline and intervals: `evaluation_<split>.json`.

        Args:
            answers: What `answer` returned.
            target: `[n, ...]` true targets.
            split: Name of the split.
            step: Optimizer steps that the model has taken.
            groups: Name of each sample's group, for the bootstrap to draw; None draws samples.
            context: What else is known of the samples: `outputs` of the model `[n, o]`, `values`
                of the source's records `[n]`.
        """
        ...

    def random_target(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Random targets `[b, ...]` of the right shape and dtype, to measure and plan with."""
        ...

    def report(self, scored: Mapping[str, Scored]) -> Sequence[ReportSection]:
        """Sections of a report that depend on the task.

        Args:
            scored: Splits of one run by their names, or one split of several runs or of the
                settings of a study by name.
        """
        ...
