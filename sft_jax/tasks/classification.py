"""Classification: each sample belongs to one of several classes.

Letters: `b` batch, `n` samples of a split, `c` classes.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from sft_jax.config.run import Config
from sft_jax.config.task import ClassificationOptions
from sft_jax.metrics.classification import (
    confusion_matrix,
    macro_f1,
    sample_cross_entropy,
    softmax,
    vote,
)
from sft_jax.metrics.inputs import distributions
from sft_jax.tasks.base import Scored
from sft_jax.tasks.blocks import ReportSection
from sft_jax.tasks.classification_metrics import (
    LOGGED,
    MAIN_METRIC,
    METRICS,
    SELECTABLE,
    step_sums,
)
from sft_jax.tasks.classification_report import classification_report
from sft_jax.tasks.classification_scores import evaluate
from sft_jax.tasks.losses import cross_entropy
from sft_jax.tasks.results import Scorer
from sft_jax.types import A_CLASS, ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """The classification task; see `base.Task` for its methods.

    Attributes:
        class_names: Name of each class.
        train_counts: Samples of each class in the training split, for the majority baseline; empty
            if the task does not score.
        class_values: Value of each class, such as a level of sentiment; empty if there are none.
        label_smoothing: Label smoothing of the training loss.
        class_weights: Weight of each class in the training loss; empty if all are 1.
        focal_gamma: Exponent of the focal loss; 0 is cross-entropy.
    """

    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] = ()
    class_values: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0

    metrics = METRICS
    main_metric = MAIN_METRIC
    logged = LOGGED
    validated = ()
    selectable = SELECTABLE
    decides = False
    target = A_CLASS
    target_name = "label"
    stored_answers = ("probabilities",)
    required_data = ("class_names",)

    def __post_init__(self):
        if self.class_weights and len(self.class_weights) != len(self.class_names):
            raise ConfigError(
                f"task.options.class_weights: given {len(self.class_weights)} numbers for "
                f"{len(self.class_names)} classes, expected one for each"
            )

    @classmethod
    def fits(cls, info: Any) -> bool:
        """Whether the data have classes."""
        return bool(info.class_names)

    @classmethod
    def from_source(cls, config: Config, info: Any, targets: Any) -> "Classification":
        """The task on prepared data."""
        mass = np.asarray(info.class_counts["train"], np.float64)
        if _options(config).class_weights == "balanced" and info.has_weight:
            label, weight = targets(A_CLASS)
            mass = np.bincount(label, weight, len(info.class_names)).astype(np.float64)
        return cls(
            class_names=tuple(info.class_names),
            train_counts=tuple(info.class_counts["train"]),
            class_values=tuple(info.class_values),
            **_loss_settings(config, mass),
        )

    def data_record(self, info: Any) -> dict[str, Any]:
        """Class names, and the samples of each class by split."""
        return {
            "class_names": list(info.class_names),
            "counts": {split: list(counts) for split, counts in info.class_counts.items()},
        }

    @classmethod
    def from_run(cls, config: Config, data: Mapping[str, Any]) -> "Classification":
        """The task of a run, from its `data.json`."""
        counts = tuple(data.get("counts", {}).get("train", ()))
        return cls(
            class_names=tuple(data["class_names"]),
            train_counts=counts,
            class_values=tuple(data.get("class_values", ())),
            **_loss_settings(config, np.asarray(counts, np.float64)),
        )

    @classmethod
    def from_config(cls, config: Config) -> "Classification":
        """The task with classes named by their numbers."""
        names = tuple(map(str, range(config.model.num_classes)))
        return cls(class_names=names, **_loss_settings(config, np.ones(len(names))))

    @classmethod
    def from_study(cls, record: Mapping[str, Any]) -> "Classification":
        """The task of a study, from its `study.json`; it cannot score."""
        return cls(class_names=tuple(record["class_names"]))

    @property
    def output_size(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def legend(self) -> dict[str, np.ndarray]:
        """Class names."""
        return {"class_names": np.asarray(self.class_names)}

    def loss(
        self, outputs: Float[Array, "b c"], target: Num[Array, "b *c"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Cross-entropy with label smoothing, class weights and focal factor, and its count.

        Targets may also be distributions over the classes `[b, c]`.
        """
        return cross_entropy(
            outputs,
            target,
            label_smoothing=self.label_smoothing,
            class_weights=jnp.asarray(self.class_weights, jnp.float32)
            if self.class_weights
            else None,
            focal_gamma=self.focal_gamma,
        )

    def sums(
        self, outputs: Float[Array, "b c"], target: Num[Array, "b *c"]
    ) -> dict[str, tuple[Float[Array, " b"], Float[Array, " b"]]]:
        """Cross-entropy without label smoothing, and whether the predicted class is correct."""
        return step_sums(outputs, target)

    def answer(self, outputs: Any) -> dict[str, Any]:
        """Class probabilities `[b, c]`, and the most probable class `[b]`."""
        on_host = isinstance(outputs, np.ndarray)
        probabilities = softmax(outputs) if on_host else jax.nn.softmax(outputs)
        return {"probabilities": probabilities, "predicted": probabilities.argmax(axis=-1)}

    def summary(self, answers: Mapping[str, np.ndarray]) -> str:
        """Number of samples predicted as each class, the most frequent first."""
        counts = Counter(self.class_names[i] for i in answers["predicted"])
        return ", ".join(f"{count} {name}" for name, count in counts.most_common())

    def fit_decision(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, weight: np.ndarray
    ) -> dict[str, Any]:
        """Nothing: the most probable class is predicted."""
        return {}

    def with_decision(self, decision: Mapping[str, Any]) -> "Classification":
        """The task itself."""
        return self

    def scorer(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        weight: np.ndarray | None = None,
    ) -> Scorer:
        """Top-1 accuracy, macro F1 and cross-entropy (from `loss` if given)."""
        probabilities, target, base = distributions(answers["probabilities"], target, weight)
        predicted = probabilities.argmax(axis=1)
        if "loss" in answers:
            losses = answers["loss"].astype(np.float64)
        else:
            losses = sample_cross_entropy(probabilities, target)

        def score(times: np.ndarray) -> dict[str, float]:
            times = times * base
            confusion = confusion_matrix(target, predicted, probabilities.shape[1], times)
            return {
                "top1": float(np.trace(confusion) / times.sum()),
                "macro_f1": macro_f1(confusion),
                "loss": float(times @ losses / times.sum()),
            }

        return score

    def group(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Mean probabilities of the samples of each group."""
        votes = vote(answers["probabilities"], target, groups)
        predicted = votes.probabilities.argmax(axis=-1)
        return {"probabilities": votes.probabilities, "predicted": predicted}, votes.label

    def score(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        *,
        split: str,
        step: int,
        groups: np.ndarray | None = None,
        weight: np.ndarray | None = None,
        outputs: np.ndarray | None = None,
        values: np.ndarray | None = None,
        **bootstrap: Any,
    ) -> dict[str, Any]:
        """Every metric of a split; see `classification_scores.evaluate`."""
        return evaluate(
            answers["probabilities"],
            target,
            weight,
            split=split,
            step=step,
            class_names=self.class_names,
            train_counts=np.asarray(self.train_counts),
            scores=outputs,
            class_values=self.class_values,
            value=values if self.class_values else None,
            group=groups,
            **bootstrap,
        )

    def random_target(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Classes drawn uniformly, `[b]` int32."""
        return rng.integers(0, self.output_size, rows).astype(np.int32)

    def report(self, scored: Mapping[str, Scored]) -> Sequence[ReportSection]:
        """Results, confusion and calibration."""
        return classification_report(scored, self.class_names)


def _options(config: Config) -> ClassificationOptions:
    options = config.task.options
    return options if isinstance(options, ClassificationOptions) else ClassificationOptions()


def _loss_settings(config: Config, mass: np.ndarray) -> dict[str, Any]:
    """Settings of the loss for classes of which the training split has so much of each."""
    options = _options(config)
    weights = options.class_weights
    if weights == "none" or not mass.any():
        weights = ()
    elif weights == "balanced":
        # A class without samples never occurs in the loss; smoothing must not blow it up.
        balanced = mass.sum() / (len(mass) * np.maximum(mass, 1e-9))
        weights = tuple(np.where(mass > 0, balanced, 1.0).tolist())
    return {
        "label_smoothing": config.train.label_smoothing,
        "class_weights": weights,
        "focal_gamma": options.focal_gamma,
    }
