"""The task protocol, and the data types of metrics and reports that it uses.

A task defines everything about the prediction. Training, studies and reports call it and handle
whatever it returns, so that a new task is one module and one entry in `tasks.TASKS`.

Letters: `b` batch, `n` samples of a split, `o` outputs of the model's head.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

from sft_jax.tasks.blocks import ReportSection
from sft_jax.types import Target

# Sum and count of a metric, per sample or over samples; their ratio is its value.
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
        """Whether values are fractions between 0 and 1."""
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
    """The metric with a name from a stored file; an unknown one is formatted as a number."""
    return metrics.get(name) or Metric(name=name, title=name, format="number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """An evaluated split of a run, or of a setting of a study with its runs pooled.

    Attributes:
        split: Name of the split.
        evaluation: Result of `Task.score`; None for a setting of a study.
        answers: Result of `Task.answer`, `{name: [n, ...]}`; empty if none are stored.
        target: True targets `[n, ...]`; None if none are stored.
        groups: Group of each sample if the bootstrap resamples groups, else None.
        ids: Id of each sample, to pair the samples of several runs; None if unknown.
        seeds: Seed of the run of each sample if runs are pooled, else None.
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
        return all(_same(a, b) for a, b in pairs)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays are equal, where NaN (unknown) equals NaN; or both are missing."""
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


@runtime_checkable
class Task(Protocol):
    """A prediction task.

    Losses and sums are pure functions of arrays, traced into the compiled step. Scores are exact:
    they are computed on the host, over an entire split, in float64.
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
        """Names of the metrics from `sums`, for the log and validation; includes `loss`."""
        ...

    @property
    def validated(self) -> Sequence[str]:
        """Names of the metrics from `scorer` that are computed at every validation as well."""
        ...

    @property
    def selectable(self) -> Sequence[str]:
        """Names of the metrics that may choose the best checkpoint: `logged`, and of `scorer`."""
        ...

    @property
    def target(self) -> Target:
        """Entry of a record that is the target."""
        ...

    @property
    def target_name(self) -> str:
        """Name of the entry that holds the true targets in files of predictions."""
        ...

    @property
    def stored_answers(self) -> Sequence[str]:
        """Names of the answers that a study stores, from which the others follow."""
        ...

    @property
    def legend(self) -> Mapping[str, np.ndarray]:
        """Arrays that explain the answers, such as class names; stored beside predictions."""
        ...

    @property
    def required_data(self) -> Sequence[str]:
        """Entries of `data.json` that `from_run` requires; a class attribute."""
        ...

    @classmethod
    def fits(cls, info: Any) -> bool:
        """Whether a `DataInfo` has targets of the task."""
        ...

    def data_record(self, info: Any) -> dict[str, Any]:
        """Entries of a run's `data.json` that describe the targets of a `DataInfo`."""
        ...

    @property
    def decides(self) -> bool:
        """Whether `fit_decision` learns anything."""
        ...

    def fit_decision(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, weight: np.ndarray
    ) -> dict[str, Any]:
        """What the task learns from the validation split after training, such as thresholds.

        Returns:
            Entries of the run's `decision.json`; empty if there is nothing to learn.
        """
        ...

    def with_decision(self, decision: Mapping[str, Any]) -> "Task":
        """The task that decides by the result of `fit_decision`."""
        ...

    def loss(
        self, outputs: Float[Array, "b o"], target: Array
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Training loss of each sample, and its count.

        The loss of a batch is `sum(weight * loss) / sum(weight * count)` over the global batch.
        """
        ...

    def sums(self, outputs: Float[Array, "b o"], target: Array) -> dict[str, Sum]:
        """Cheap metrics of each sample, inside the step: `{name: (sum [b], count [b])}`.

        The metric of a batch or a split is `sum(weight * sum) / sum(weight * count)`.
        """
        ...

    def answer(self, outputs: Any) -> dict[str, Any]:
        """Predictions `{name: [b, ...]}` from the outputs `[b, o]` of the model.

        JAX arrays are traced; NumPy arrays are computed on the host in float64.
        """
        ...

    def summary(self, answers: Mapping[str, np.ndarray]) -> str:
        """A line about the predictions, for the terminal."""
        ...

    def scorer(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> Callable[[np.ndarray], dict[str, float]]:
        """Exact metrics for studies and comparisons; includes `logged`.

        Args:
            answers: Result of `answer`, and optionally the `loss` of each sample from `sums`.
            target: True targets `[n, ...]`.
            weight: How much each sample counts; once by default.

        Returns:
            Function from how often each sample is drawn `[n]` to the metrics by name, NaN where
            undefined. It may be called many times, as a bootstrap does.
        """
        ...

    def group(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
        """Answers and targets of groups of samples `[g, ...]`, in order of the group names.

        None if the task does not score groups.
        """
        ...

    def score(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        *,
        split: str,
        step: int,
        groups: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Exact metrics of a split with baseline and intervals: `evaluation_<split>.json`.

        Args:
            answers: Result of `answer`.
            target: True targets `[n, ...]`.
            split: Name of the split.
            step: Optimizer steps that the model has taken.
            groups: Group of each sample, for the bootstrap to resample; None resamples samples.
            weight: How much each sample counts; once by default.
            context: Further arrays: `outputs` of the model `[n, o]` and `values` of the records in
                the source `[n]`.
        """
        ...

    def random_target(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Random targets `[b, ...]` of the right shape and dtype, for measurements."""
        ...

    def report(self, scored: Mapping[str, Scored]) -> Sequence[ReportSection]:
        """Sections of a report that depend on the task.

        Args:
            scored: Splits of one run, or one split of several runs or settings, by name.
        """
        ...
