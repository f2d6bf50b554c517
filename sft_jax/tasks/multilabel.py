"""Multi-label classification: each sample has any number of labels, some of which may be unknown.

Letters: `b` batch, `n` samples of a split, `c` labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sft_jax.config.run import Config
from sft_jax.config.task import MultilabelOptions
from sft_jax.metrics.inputs import counted
from sft_jax.metrics.multilabel import NAMES, Scorer, best_thresholds
from sft_jax.tasks import results
from sft_jax.tasks.base import Metric, Scored, Sum
from sft_jax.tasks.blocks import ReportSection
from sft_jax.tasks.losses import binary_cross_entropy
from sft_jax.tasks.multilabel_report import multilabel_report
from sft_jax.types import ConfigError, Target

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="loss", title="Binary cross-entropy", format="number", higher_is_better=False),
        Metric(name="mAP", title="Mean average precision"),
        Metric(name="mAUC", title="Mean area under the ROC curve"),
        Metric(name="d_prime", title="d'", format="number"),
        Metric(name="macro_f1", title="Macro F1"),
        Metric(name="micro_f1", title="Micro F1"),
        Metric(name="weighted_f1", title="F1 weighted by positives"),
        Metric(name="samples_f1", title="F1 per sample"),
        Metric(name="hamming_loss", title="Hamming loss", higher_is_better=False),
        Metric(name="exact_match", title="Exact match"),
        Metric(name="lrap", title="Label ranking average precision"),
        Metric(name="coverage", title="Coverage error", format="number", higher_is_better=False),
        Metric(name="ranking_loss", title="Ranking loss", higher_is_better=False),
    )
}
# The largest factor that `balanced` gives to positives.
_LARGEST_WEIGHT = 100.0
# A probability that underflowed costs 87.3 nats, not infinity.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multilabel:
    """The multi-label task; see `base.Task` for its methods.

    Attributes:
        label_names: Name of each label.
        positives: Weight of the training samples that have each label; empty if the task does not
            score.
        negatives: Weight of the training samples that lack it.
        options: Settings of the task.
        thresholds: Probability from which each label is assigned; empty for 0.5.
    """

    label_names: tuple[str, ...]
    positives: tuple[float, ...] = ()
    negatives: tuple[float, ...] = ()
    options: MultilabelOptions = dataclasses.field(default_factory=MultilabelOptions)
    thresholds: tuple[float, ...] = ()

    metrics = METRICS
    main_metric = "mAP"
    logged = ("loss", "micro_f1")
    validated = ("mAP",)
    selectable = NAMES
    target_name = "true_labels"
    stored_answers = ("probabilities", "labels")
    required_data = ("label_names", "label_counts")

    def __post_init__(self):
        weights = self.options.pos_weight
        if isinstance(weights, tuple) and len(weights) != len(self.label_names):
            raise ConfigError(
                f"task.options.pos_weight: given {len(weights)} numbers for "
                f"{len(self.label_names)} labels, expected one for each"
            )

    @classmethod
    def fits(cls, info: Any) -> bool:
        """Whether the data have labels."""
        return bool(info.label_names)

    @classmethod
    def from_source(cls, config: Config, info: Any, targets: Any) -> "Multilabel":
        """The task on prepared data."""
        names = tuple(info.label_names)
        target, weight = targets(Target("labels", len(names)))
        positives, negatives = (weight @ (target == value) for value in (1, 0))
        return cls(
            label_names=names,
            positives=tuple(positives.tolist()),
            negatives=tuple(negatives.tolist()),
            options=_options(config),
        )

    @classmethod
    def from_run(cls, config: Config, data: Mapping[str, Any]) -> "Multilabel":
        """The task of a run, from its `data.json`."""
        counts = data["label_counts"]
        return cls(
            label_names=tuple(data["label_names"]),
            positives=tuple(counts["positive"]),
            negatives=tuple(counts["negative"]),
            options=_options(config),
        )

    @classmethod
    def from_config(cls, config: Config) -> "Multilabel":
        """The task with labels named by their numbers."""
        names = tuple(map(str, range(config.model.num_classes)))
        return cls(label_names=names, options=_options(config))

    @classmethod
    def from_study(cls, record: Mapping[str, Any]) -> "Multilabel":
        """The task of a study, from its `study.json`; it cannot score."""
        return cls(label_names=tuple(record["label_names"]))

    def data_record(self, info: Any) -> dict[str, Any]:
        """Label names, and the training samples with and without each label."""
        counts = {"positive": list(self.positives), "negative": list(self.negatives)}
        return {"label_names": list(self.label_names), "label_counts": counts}

    @property
    def output_size(self) -> int:
        """Number of labels."""
        return len(self.label_names)

    @property
    def target(self) -> Target:
        """The labels of a record."""
        return Target("labels", self.output_size)

    @property
    def legend(self) -> dict[str, np.ndarray]:
        """Label names."""
        return {"label_names": np.asarray(self.label_names)}

    @property
    def pos_weight(self) -> Float[np.ndarray, " c"] | None:
        """Factor on the loss of positives; None if all are 1."""
        given = self.options.pos_weight
        if given == "none" or (given == "balanced" and not self.positives):
            return None
        if given == "balanced":
            positives, negatives = (np.asarray(x) for x in (self.positives, self.negatives))
            most = positives * _LARGEST_WEIGHT
            ratio = np.where(negatives < most, negatives / np.maximum(positives, 1e-9), 100.0)
            return ratio.astype(np.float32)
        return np.asarray(given, np.float32)

    def loss(
        self, outputs: Float[Array, "b c"], target: Float[Array, "b c"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Binary cross-entropy, summed over the known labels, and their number."""
        weights, options = self.pos_weight, self.options
        return binary_cross_entropy(
            outputs,
            target,
            pos_weight=None if weights is None else jnp.asarray(weights),
            focal_gamma=options.focal_gamma,
            focal_alpha=options.focal_alpha or None,
        )

    def sums(self, outputs: Float[Array, "b c"], target: Float[Array, "b c"]) -> dict[str, Sum]:
        """Binary cross-entropy without weights, and micro F1."""
        known, true = ~jnp.isnan(target), target == 1
        decided = self.answer(outputs)["labels"] & known
        hits, both = (true & decided).sum(axis=1), true.sum(axis=1) + decided.sum(axis=1)
        return {
            "loss": binary_cross_entropy(outputs, target),
            "micro_f1": (2.0 * hits.astype(jnp.float32), both.astype(jnp.float32)),
        }

    def answer(self, outputs: Any) -> dict[str, Any]:
        """Probability of each label `[b, c]`, and whether it is assigned."""
        if isinstance(outputs, np.ndarray):
            # Without overflow, whatever the sign.
            probabilities = np.exp(-np.logaddexp(0, -outputs.astype(np.float64)))
        else:
            probabilities = jax.nn.sigmoid(outputs)  # type: ignore[assignment]
        thresholds = np.asarray(self.thresholds or (0.5,), np.float32)
        return {"probabilities": probabilities, "labels": probabilities >= thresholds}

    @property
    def decides(self) -> bool:
        """Whether thresholds are chosen by the validation split."""
        return self.options.thresholds == "validation"

    def fit_decision(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, weight: np.ndarray
    ) -> dict[str, Any]:
        """The threshold of each label with the best F1."""
        return {"thresholds": best_thresholds(answers["probabilities"], target, weight).tolist()}

    def with_decision(self, decision: Mapping[str, Any]) -> "Multilabel":
        """The task with the thresholds of `fit_decision`."""
        return dataclasses.replace(self, thresholds=tuple(decision.get("thresholds", ())))

    def summary(self, answers: Mapping[str, np.ndarray]) -> str:
        """Number of samples with each label, the most frequent first."""
        counts = answers["labels"].sum(axis=0)
        order = np.argsort(-counts, kind="stable")[:10]
        shown = ", ".join(f"{counts[i]} {self.label_names[i]}" for i in order)
        return shown + (", ..." if len(counts) > len(order) else "")

    def scorer(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> results.Scorer:
        """Every metric of `metrics.multilabel.NAMES`, with `loss` of the answers if given."""
        probabilities = np.asarray(answers["probabilities"], np.float64)
        if "loss" in answers:
            losses = np.asarray(answers["loss"], np.float64)
        else:
            chance = np.where(target == 1, probabilities, 1 - probabilities)
            losses = -np.nansum(np.log(np.maximum(chance, _SMALLEST)), 1, where=~np.isnan(target))
        score = Scorer(probabilities, answers["labels"], target, weight, losses=losses)
        return lambda times: dict(zip(NAMES, score(times).tolist(), strict=True))

    def group(self, answers: Any, target: np.ndarray, groups: np.ndarray) -> None:
        """Groups are not scored, since their samples may have other labels."""

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
        """Every metric of a split, in all and per label, beside those of the label frequencies."""
        times = counted(weight, len(target)).astype(np.float64)
        known = np.asarray(self.positives) + np.asarray(self.negatives)
        frequency = np.asarray(self.positives) / np.maximum(known, 1)
        constant = np.broadcast_to(frequency, target.shape)
        answer = {"probabilities": constant, "labels": constant >= 0.5}
        baseline = self.scorer(answer, target, times)(np.ones(len(target)))
        probabilities = answers["probabilities"]
        by_label = Scorer(probabilities, answers["labels"], target, times).per_label()
        thresholds = np.broadcast_to(np.asarray(self.thresholds or (0.5,)), self.output_size)
        return results.evaluation(
            self.scorer(answers, target, times),
            len(target),
            baseline=("the frequency of each label in the training split", baseline),
            per_output=[
                {
                    "name": name,
                    "threshold": float(thresholds[i]),
                    **results.plain({key: column[i] for key, column in by_label.items()}),
                }
                for i, name in enumerate(self.label_names)
            ],
            **context,
        )

    def random_target(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Labels drawn evenly, `[b, c]` float32."""
        return rng.integers(0, 2, (rows, self.output_size)).astype(np.float32)

    def report(self, scored: Mapping[str, Scored]) -> Sequence[ReportSection]:
        """Results, scores and curves per label, and calibration."""
        return multilabel_report(scored, self, METRICS)


def _options(config: Config) -> MultilabelOptions:
    options = config.task.options
    return options if isinstance(options, MultilabelOptions) else MultilabelOptions()
