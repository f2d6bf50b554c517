"""Regression: each sample has one or more numbers, some of which may be unknown.

The model's outputs are standardized by the training split; answers and scores are in the units of
the source. Letters: `b` batch, `n` samples of a split, `r` numbers.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sft_jax.config.run import Config
from sft_jax.config.task import RegressionOptions
from sft_jax.metrics import sentiment
from sft_jax.metrics.inputs import counted
from sft_jax.metrics.regression import NAMES, average, conformal_width, regression_scores
from sft_jax.tasks import losses, results
from sft_jax.tasks.base import Metric, Scored, Sum
from sft_jax.tasks.blocks import ReportSection
from sft_jax.tasks.regression_report import regression_report
from sft_jax.types import CheckpointError, Target

_SENTIMENT = tuple(name for name in sentiment.REGRESSION if name != "mae")
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="loss", title="Loss", format="number", higher_is_better=False),
        Metric(name="mae", title="Mean absolute error", format="number", higher_is_better=False),
        Metric(
            name="rmse", title="Root mean squared error", format="number", higher_is_better=False
        ),
        Metric(name="r2", title="R^2", format="number"),
        Metric(name="pearson", title="Pearson correlation", format="number"),
        Metric(name="spearman", title="Spearman correlation", format="number"),
        Metric(name="ccc", title="Concordance correlation", format="number"),
        Metric(name="interval_coverage", title="Share of numbers inside their interval"),
        Metric(name="corr", title="Pearson correlation", format="number"),
        *(Metric(name=name, title=name) for name in _SENTIMENT if name != "corr"),
    )
}
_ELEMENTS = {"l1": losses.absolute, "mse": jnp.square}
# Statistics of the training split, by their names in `data.json`.
STATISTICS = ("mean", "std", "median", "mean_deviation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """The regression task; see `base.Task` for its methods.

    Attributes:
        value_names: Name of each number.
        statistics: For each number its mean, population standard deviation, median, and mean
            absolute deviation from the median over the training split.
        class_names: Names of the classes that the number is rounded to; empty if there are none.
        class_values: Value of each of these classes.
        options: Settings of the task.
        widths: Half-width of the prediction interval of each number; empty if there is none.
    """

    value_names: tuple[str, ...]
    statistics: tuple[tuple[float, float, float, float], ...]
    class_names: tuple[str, ...] = ()
    class_values: tuple[float, ...] = ()
    options: RegressionOptions = dataclasses.field(default_factory=RegressionOptions)
    widths: tuple[float, ...] = ()

    metrics = METRICS
    main_metric = "mae"
    logged = ("loss",)
    validated = ("mae",)
    selectable = ("loss", *NAMES, *_SENTIMENT)
    decides = True
    target_name = "true_value"
    stored_answers = ("value",)
    required_data = ("value_names", "value_statistics")

    @classmethod
    def fits(cls, info: Any) -> bool:
        """Whether the data have numbers."""
        return bool(info.value_names)

    @classmethod
    def from_source(cls, config: Config, info: Any, targets: Any) -> "Regression":
        """The task on prepared data."""
        names = tuple(info.value_names)
        target, weight = targets(Target("value", len(names)))
        return cls(
            value_names=names,
            statistics=tuple(_statistics(column, weight) for column in target.T),
            class_names=tuple(info.class_names) if info.class_values else (),
            class_values=tuple(info.class_values),
            options=_options(config),
        )

    @classmethod
    def from_run(cls, config: Config, data: Mapping[str, Any]) -> "Regression":
        """The task of a run, from its `data.json`."""
        columns = [data["value_statistics"].get(name, ()) for name in STATISTICS]
        if any(len(column) != len(data["value_names"]) for column in columns):
            raise CheckpointError(
                f"data.json: value_statistics: found {sorted(data['value_statistics'])}, expected "
                f"{', '.join(STATISTICS)} of {len(data['value_names'])} numbers; restore the file"
            )
        return cls(
            value_names=tuple(data["value_names"]),
            statistics=tuple(zip(*columns, strict=True)),
            class_names=tuple(data.get("class_names", ())),
            class_values=tuple(data.get("class_values", ())),
            options=_options(config),
        )

    @classmethod
    def from_config(cls, config: Config) -> "Regression":
        """The task with numbers named by their position, of mean 0 and deviation 1."""
        names = tuple(map(str, range(config.model.num_classes)))
        unit = (0.0, 1.0, 0.0, 1.0)
        return cls(value_names=names, statistics=(unit,) * len(names), options=_options(config))

    @classmethod
    def from_study(cls, record: Mapping[str, Any]) -> "Regression":
        """The task of a study, from its `study.json`; it cannot score."""
        names = tuple(record["value_names"])
        return cls(value_names=names, statistics=((0.0, 1.0, 0.0, 1.0),) * len(names))

    def data_record(self, info: Any) -> dict[str, Any]:
        """Names and statistics of the numbers, and the classes that they are rounded to."""
        columns = map(list, zip(*self.statistics, strict=True))
        record: dict[str, Any] = {
            "value_names": list(self.value_names),
            "value_statistics": dict(zip(STATISTICS, columns, strict=True)),
        }
        if self.class_values:
            record["class_names"] = list(self.class_names)
            record["class_values"] = list(self.class_values)
        return record

    @property
    def output_size(self) -> int:
        """Number of numbers `r`."""
        return len(self.value_names)

    @property
    def target(self) -> Target:
        """The numbers of a record."""
        return Target("value", self.output_size)

    @property
    def legend(self) -> dict[str, np.ndarray]:
        """Names of the numbers, and of the classes that they are rounded to."""
        classes = {"class_names": np.asarray(self.class_names)} if self.class_names else {}
        return {"value_names": np.asarray(self.value_names), **classes}

    @functools.cached_property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and width of each number, float64; a constant number has width 1."""
        mean, std, median, deviation = np.asarray(self.statistics).T
        centre, width = (median, deviation) if self.options.loss == "l1" else (mean, std)
        # Rounding of a constant is no width.
        return centre, np.where(width > 1e-9 * np.maximum(1, np.abs(centre)), width, 1.0)

    def loss(
        self, outputs: Float[Array, "b r"], target: Float[Array, "b r"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Loss of the standardized numbers, summed over the known ones, and their number."""
        centre, width = (jnp.asarray(x, jnp.float32) for x in self._scale)
        delta = self.options.huber_delta
        element = _ELEMENTS.get(self.options.loss, functools.partial(losses.huber, delta=delta))
        return losses.regression(outputs, (target - centre) / width, element)

    def sums(self, outputs: Float[Array, "b r"], target: Float[Array, "b r"]) -> dict[str, Sum]:
        """The loss."""
        return {"loss": self.loss(outputs, target)}

    def answer(self, outputs: Any) -> dict[str, Any]:
        """Numbers `[b, r]` in the units of the source, their intervals, and the rounded class."""
        on_host = isinstance(outputs, np.ndarray)
        array, dtype = (np, np.float64) if on_host else (jnp, jnp.float32)
        centre, width = (array.asarray(x, dtype) for x in self._scale)
        value = outputs.astype(dtype) * width + centre
        answers = {"value": value}
        if self.widths:
            half = array.asarray(self.widths, dtype)
            answers |= {"low": value - half, "high": value + half}
        if self.class_values:
            levels = array.asarray(self.class_values, dtype)
            # Half to even, as labels are rounded to classes.
            rounded = array.clip(array.rint(value[:, 0]), levels[0], levels[-1])
            answers["predicted"] = array.abs(rounded[:, None] - levels).argmin(axis=1)
        return answers

    def fit_decision(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, weight: np.ndarray
    ) -> dict[str, Any]:
        """Half-widths of split-conformal intervals; None where there are too few samples."""
        widths = []
        for value, truth in zip(answers["value"].T, target.T, strict=True):
            known = ~np.isnan(truth) & (weight > 0)
            residuals = np.abs(value[known].astype(np.float64) - truth[known])
            width = conformal_width(residuals, self.options.level, weight[known])
            widths.append(width if np.isfinite(width) else None)
        return {"widths": widths}

    def with_decision(self, decision: Mapping[str, Any]) -> "Regression":
        """The task with the interval widths of `fit_decision`, if all are known."""
        widths = tuple(decision.get("widths", ()))
        return dataclasses.replace(self, widths=() if None in widths else widths)

    def summary(self, answers: Mapping[str, np.ndarray]) -> str:
        """Mean and range of each number."""
        return ", ".join(
            f"{name} {column.mean():.4g} on average ({column.min():.4g} to {column.max():.4g})"
            for name, column in zip(self.value_names, answers["value"].T, strict=True)
        )

    def scorer(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> results.Scorer:
        """Every metric of `metrics.regression.NAMES`, averaged over the numbers, and `loss`."""
        value = np.asarray(answers["value"], np.float64)
        target = np.asarray(target, np.float64).reshape(value.shape)
        known = (~np.isnan(target)).sum(axis=1)
        base = counted(weight, len(target))
        if "loss" in answers:
            summed = np.asarray(answers["loss"], np.float64)
        else:
            outputs = jnp.asarray((value - self._scale[0]) / self._scale[1], jnp.float32)
            summed = np.asarray(self.loss(outputs, jnp.asarray(target, jnp.float32))[0])
        inside = None
        if "low" in answers:
            inside = (answers["low"] <= target) & (target <= answers["high"])

        def score(times: np.ndarray) -> dict[str, float]:
            times = times * base
            entries = times @ known
            undefined = float("nan")
            values = {"loss": float(times @ summed / entries) if entries else undefined}
            scores = regression_scores(value, target, times)
            values |= {name: average(scores[name]) for name in NAMES}
            if inside is not None:
                values["interval_coverage"] = (
                    float(times @ inside.sum(axis=1) / entries) if entries else undefined
                )
            if self.class_values:
                counted_rows = np.where(known > 0, times, 0)
                view = sentiment.regression_view(
                    value[:, 0], np.nan_to_num(target[:, 0]), counted_rows
                )
                found = ((name, view[name]) for name in _SENTIMENT)
                values |= {name: undefined if x is None else x for name, x in found}
            return values

        return score

    def group(self, answers: Any, target: np.ndarray, groups: np.ndarray) -> None:
        """Groups are not scored, since their samples may have other numbers."""

    def score(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        *,
        weight: np.ndarray | None = None,
        outputs: np.ndarray | None = None,
        values: np.ndarray | None = None,
        **context: Any,
    ) -> dict[str, Any]:
        """Every metric of a split, on average and per number, beside a constant prediction."""
        times = counted(weight, len(target)).astype(np.float64)
        once = np.ones(len(target))
        mean, _, median, _ = np.asarray(self.statistics).T
        by_mean, by_median = (
            self.scorer({"value": np.broadcast_to(x, target.shape)}, target, times)(once)
            for x in (mean, median)
        )
        baseline = {**by_median, "rmse": by_mean["rmse"], "r2": by_mean["r2"]}
        by_value = regression_scores(answers["value"], target, times)
        description = "the median of the training split, or its mean for rmse and r2"
        return results.evaluation(
            self.scorer(answers, target, times),
            len(target),
            baseline=(description, baseline),
            per_output=[
                {
                    "name": name,
                    "known": float(times @ ~np.isnan(target[:, i])),
                    **results.plain({key: column[i] for key, column in by_value.items()}),
                }
                for i, name in enumerate(self.value_names)
            ],
            **context,
        )

    def random_target(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Numbers drawn from a normal distribution, `[b, r]` float32."""
        return rng.normal(size=(rows, self.output_size)).astype(np.float32)

    def report(self, scored: Mapping[str, Scored]) -> Sequence[ReportSection]:
        """Results, and predicted against true numbers."""
        return regression_report(scored, self, METRICS)


def _statistics(values: np.ndarray, weight: np.ndarray) -> tuple[float, float, float, float]:
    """See `Regression.statistics`; of known values, by their weights."""
    known = ~np.isnan(values) & (weight > 0)
    values, weight = values[known].astype(np.float64), weight[known]
    if not values.size:
        return 0.0, 1.0, 0.0, 1.0
    mean = np.average(values, weights=weight)
    std = np.sqrt(np.average((values - mean) ** 2, weights=weight))
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weight[order])
    # Between both middle values if half of the weight lies below one.
    middle = [np.searchsorted(mass, mass[-1] / 2, side=side) for side in ("left", "right")]
    median = values[order][np.minimum(middle, len(values) - 1)].mean()
    deviation = np.average(np.abs(values - median), weights=weight)
    return tuple(map(float, (mean, std, median, deviation)))  # type: ignore[return-value]


def _options(config: Config) -> RegressionOptions:
    options = config.task.options
    return options if isinstance(options, RegressionOptions) else RegressionOptions()
