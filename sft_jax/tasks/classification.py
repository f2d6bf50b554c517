"""Classification: one of several classes for each sample.

Letters: `b` batch, `n` samples of a split, `c` classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.config.run import Config
from sft_jax.metrics.classification import (
    confusion_matrix,
    macro_f1,
    sample_cross_entropy,
    softmax,
    vote,
)
from sft_jax.metrics.inputs import distributions
from sft_jax.tasks.base import ReportSection, Scored
from sft_jax.tasks.classification_report import MAIN_METRIC, METRICS, classification_report
from sft_jax.tasks.classification_scores import evaluate


def cross_entropy(
    logits: Float[Array, "b c"], label: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Softmax cross-entropy of each sample in nats, in float32.

    Args:
        logits: Unnormalised scores.
        label: Class of each sample.
        label_smoothing: Share of the target that is spread evenly over all classes.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=jnp.float32)
    target = (1.0 - label_smoothing) * target + label_smoothing / logits.shape[-1]
    return -jnp.sum(target * log_probabilities, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """The task of naming one class a sample; see `base.Task` for what its methods promise.

    Attributes:
        class_names: Name of each class.
        train_counts: Samples of each class in the training split, for the majority baseline; empty
            where nothing is scored.
        class_values: Number that each class stands for, such as a degree of sentiment; empty where
            classes have none.
        label_smoothing: Share of the target that the training loss spreads over all classes.
    """

    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] = ()
    class_values: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    metrics = METRICS
    main_metric = MAIN_METRIC
    logged = ("loss", "top1")
    target_name = "label"

    @classmethod
    def from_source(cls, config: Config, info: Any) -> "Classification":
        """The task on prepared data."""
        return cls(
            class_names=tuple(info.class_names),
            train_counts=tuple(info.class_counts["train"]),
            class_values=tuple(info.class_values),
            label_smoothing=config.train.label_smoothing,
        )

    @classmethod
    def from_run(cls, config: Config, data: Mapping[str, Any]) -> "Classification":
        """The task of a run, from its `data.json`."""
        return cls(
            class_names=tuple(data["class_names"]),
            train_counts=tuple(data.get("counts", {}).get("train", ())),
            class_values=tuple(data.get("class_values", ())),
            label_smoothing=config.train.label_smoothing,
        )

    @classmethod
    def from_config(cls, config: Config) -> "Classification":
        """The task with classes named by their numbers."""
        return cls(
            class_names=tuple(map(str, range(config.model.num_classes))),
            label_smoothing=config.train.label_smoothing,
        )

    @classmethod
    def from_study(cls, record: Mapping[str, Any]) -> "Classification":
        """The task of a study, from its `study.json`; it reports, and cannot score."""
        return cls(class_names=tuple(record["class_names"]))

    @property
    def output_size(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def loss(
        self, outputs: Float[Array, "b c"], target: Int[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Cross-entropy with label smoothing; every sample counts for one."""
        losses = cross_entropy(outputs, target, self.label_smoothing)
        return losses, jnp.ones_like(losses)

    def sums(
        self, outputs: Float[Array, "b c"], target: Int[Array, " b"]
    ) -> dict[str, tuple[Float[Array, " b"], Float[Array, " b"]]]:
        """Cross-entropy without label smoothing, and whether the first choice is right."""
        losses = cross_entropy(outputs, target)
        one = jnp.ones_like(losses)
        correct = (outputs.argmax(axis=-1) == target).astype(losses.dtype)
        return {"loss": (losses, one), "top1": (correct, one)}

    def answer(self, outputs: Any) -> dict[str, Any]:
        """Class probabilities `[b, c]`, and the most probable class `[b]`."""
        on_host = isinstance(outputs, np.ndarray)
        probabilities = softmax(outputs) if on_host else jax.nn.softmax(outputs)
        return {"probabilities": probabilities, "predicted": probabilities.argmax(axis=-1)}

    def values(
        self,
        answers: Mapping[str, np.ndarray],
        target: np.ndarray,
        times: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Top-1, macro F1 and cross-entropy (of `loss` where the answers hold it)."""
        probabilities, target, times = distributions(answers["probabilities"], target, times)
        confusion = confusion_matrix(
            target, probabilities.argmax(axis=1), probabilities.shape[1], times
        )
        if "loss" in answers:
            losses = answers["loss"].astype(np.float64)
        else:
            losses = sample_cross_entropy(probabilities, target)
        return {
            "top1": float(np.trace(confusion) / times.sum()),
            "macro_f1": macro_f1(confusion),
            "loss": float(times @ losses / times.sum()),
        }

    def group(
        self, answers: Mapping[str, np.ndarray], target: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Groups judged by the mean probabilities of their samples."""
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
        outputs: np.ndarray | None = None,
        values: np.ndarray | None = None,
        **bootstrap: Any,
    ) -> dict[str, Any]:
        """Every metric of a split; see `classification_scores.evaluate`."""
        return evaluate(
            answers["probabilities"],
            target,
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
