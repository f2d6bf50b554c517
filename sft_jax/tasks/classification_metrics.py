"""Metrics of classification: names, formats, values inside the step, and exact values.

A new metric is an entry of `METRICS`, and of `step_sums` to log it, or of `statistics` to score it.

Letters: `b` batch, `n` samples of a split, `c` classes.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from sft_jax.metrics import sentiment
from sft_jax.metrics.classification import (
    confusion_matrix,
    macro_f1,
    sample_cross_entropy,
    top_k_hits,
)
from sft_jax.tasks.base import Metric, Sum
from sft_jax.tasks.losses import cross_entropy

MAIN_METRIC = "top1"
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="top1", title="Top-1 accuracy"),
        Metric(name="top3", title="Top-3 accuracy"),
        Metric(name="top5", title="Top-5 accuracy"),
        Metric(name="loss", title="Cross-entropy (nats)", format="number", higher_is_better=False),
        Metric(name="macro_f1", title="Macro F1"),
        Metric(name="mAP", title="Mean average precision"),
        Metric(name="mAUC", title="Mean area under the ROC curve"),
        Metric(name="d_prime", title="d'", format="number"),
        Metric(name="mae", title="Mean absolute error", format="number", higher_is_better=False),
        Metric(name="corr", title="Pearson correlation", format="number"),
        *(
            Metric(name=name, title=name)
            for name in (*sentiment.REGRESSION, *sentiment.CLASSIFICATION)
            if name not in ("mae", "corr")
        ),
    )
}
LOGGED = ("loss", "top1")
SELECTABLE = ("loss", "top1", "macro_f1")
# A value of every sample `[n]` to take the mean of, or a function from how much each counts `[n]`.
Statistic = np.ndarray | Callable[[np.ndarray], float]


def step_sums(logits: Float[Array, "b c"], target: Num[Array, "b *c"]) -> dict[str, Sum]:
    """Metrics of `LOGGED` for each sample, inside the step: `{name: (sum [b], count [b])}`."""
    losses, _ = cross_entropy(logits, target)
    one = jnp.ones_like(losses)
    label = target if target.ndim == 1 else target.argmax(axis=-1)
    correct = (jax.nn.softmax(logits).argmax(axis=-1) == label).astype(losses.dtype)
    return {"loss": (losses, one), "top1": (correct, one)}


def statistics(probabilities: np.ndarray, label: np.ndarray) -> dict[str, Statistic]:
    """Exact metrics of a split, to be resampled; `top3` needs 4 classes, `top5` 10."""
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)

    def f1(times: np.ndarray) -> float:
        return macro_f1(confusion_matrix(label, predicted, num_classes, times))

    return {
        **{f"top{k}": top_k_hits(probabilities, label, k) for k in _ks(num_classes)},
        "loss": sample_cross_entropy(probabilities, label),
        "macro_f1": f1,
    }


def _ks(num_classes: int) -> list[int]:
    """Each `k` for which top-k accuracy is scored."""
    return [k for k, least in ((1, 1), (3, 4), (5, 10)) if num_classes >= least]
