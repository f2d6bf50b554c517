"""Comparison of the tasks' losses and metrics with values recorded from other libraries.

- `kind` `losses`: for each case `<case>/outputs`, `<case>/target`, `<case>/settings` (JSON), any of
  `mask`, `pos_weight` and `class_weights`, and the results `loss`, `elements` and `grad`. The name
  of a case begins with that of its loss.
- `kind` `task_metrics`: groups of inputs (`<group>/prediction` and `<group>/target`, or
  `<group>/logits`, `<group>/scores` and `<group>/target`), and `expected` (JSON) with the metrics
  of each group; null is undefined.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.metrics import multilabel
from sft_jax.metrics.regression import average, regression_scores
from sft_jax.tasks import losses
from sft_jax.types import DataError

# Relative to 1 + |value|.
TOLERANCE = 1e-6
KINDS = ("losses", "task_metrics")
_RECORD = "record the file again"
_ELEMENTS = {"l1": losses.absolute, "mse": jnp.square, "huber": losses.huber}
# The package's names of recorded metrics.
_MULTILABEL = {
    "f1_macro": "macro_f1",
    "f1_micro": "micro_f1",
    "f1_weighted": "weighted_f1",
    "f1_samples": "samples_f1",
    "roc_auc_macro": "mAUC",
    "coverage_error": "coverage",
    "bce_loss": "loss",
    **{name: name for name in ("mAP", "lrap", "ranking_loss", "hamming_loss", "exact_match")},
}
_PER_LABEL = {
    "f1_per_class": "f1",
    "support": "positives",
    "known_per_class": "known",
    "average_precision_per_class": "AP",
    "roc_auc_per_class": "AUC",
}
_SETTINGS = ("threshold", "functions", "versions")


def kind_of(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The kind of a file of this module, one of `KINDS`; None for any other file."""
    try:
        kind = json.loads(str(arrays["meta"]))["kind"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return kind if kind in KINDS else None


def compare(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Yields every recorded quantity, with its largest difference relative to 1 + |value|.

    The difference is NaN if only one of both values is undefined.

    Raises:
        DataError: An entry is missing, has a wrong shape, or is unknown.
    """
    try:
        if kind_of(arrays) == "losses":
            yield from _compare_losses(arrays)
        else:
            yield from _compare_metrics(arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"found entries that do not fit together ({error!r}), expected those of recorded "
            f"losses or metrics; {_RECORD}"
        ) from error


def _difference(computed: Any, recorded: Any) -> float:
    computed, recorded = (np.asarray(x, np.float64) for x in (computed, recorded))
    if computed.shape != recorded.shape:
        raise DataError(f"found shape {recorded.shape}, expected {computed.shape}; {_RECORD}")
    both = np.isnan(computed) & np.isnan(recorded)
    off = np.where(both, 0.0, np.abs(computed - recorded) / (1 + np.abs(recorded)))
    return float(off.max(initial=0.0))


def _compare_losses(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    for case in dict.fromkeys(name.partition("/")[0] for name in arrays if "/" in name):
        entries = {
            name.partition("/")[2]: jnp.asarray(values)
            for name, values in arrays.items()
            if name.startswith(f"{case}/") and values.dtype.kind != "U"
        }
        outputs, target = entries["outputs"], entries["target"]
        if "mask" in entries:
            target = jnp.where(entries["mask"], target, jnp.nan)
        loss = _loss_of(case, json.loads(str(arrays[f"{case}/settings"])), entries)

        def mean(outputs, target=target, loss=loss):
            total, count = loss(outputs, target)
            return total.sum() / count.sum()

        value, grad = jax.value_and_grad(mean)(outputs)
        yield f"{case}/loss", _difference(value, entries["loss"])
        yield f"{case}/grad", _difference(grad, entries["grad"])
        if "elements" in entries:
            yield (
                f"{case}/elements",
                _difference(loss.elements(outputs, target), entries["elements"]),
            )


class _Loss:
    """A loss with its settings, and its values before they are summed over the outputs."""

    def __init__(self, function: Callable[..., losses.Losses], weights: jax.Array | None):
        self._function, self._weights = function, weights

    def __call__(self, outputs: jax.Array, target: jax.Array) -> losses.Losses:
        return self._function(outputs, target, self._weights)

    def elements(self, outputs: jax.Array, target: jax.Array) -> jax.Array:
        if target.ndim == 1:
            return self(outputs, target)[0]

        def column(outputs, target, weight):
            weight = None if weight is None else weight[None]
            return self._function(outputs[:, None], target[:, None], weight)[0]

        axes = (1, 1, None if self._weights is None else 0)
        return jax.vmap(column, in_axes=axes, out_axes=1)(outputs, target, self._weights)


def _loss_of(case: str, settings: Mapping[str, Any], entries: Mapping[str, jax.Array]) -> _Loss:
    def number(name: str, default: float) -> float:
        return float(settings.get(name, default))

    if case.startswith("cross_entropy"):
        smoothing = number("label_smoothing", 0.0)
        return _Loss(
            lambda outputs, target, weights: losses.cross_entropy(
                outputs, target, label_smoothing=smoothing, class_weights=weights
            ),
            entries.get("class_weights"),
        )
    if case.startswith(("bce", "focal")):
        focal = case.startswith("focal")
        gamma, alpha = number("gamma", 0.0), number("alpha", 0.0) if focal else None
        return _Loss(
            lambda outputs, target, weights: losses.binary_cross_entropy(
                outputs, target, pos_weight=weights, focal_gamma=gamma, focal_alpha=alpha
            ),
            entries.get("pos_weight"),
        )
    name = case.partition("_")[0]
    if name not in _ELEMENTS:
        raise DataError(
            f"{case}: found an unknown loss, expected a name that begins with cross_entropy, bce, "
            f"focal, {', '.join(_ELEMENTS)}; rename the case"
        )
    delta = {"delta": number("delta", 1.0)} if name == "huber" else {}
    element = _ELEMENTS[name]
    return _Loss(
        lambda outputs, target, _: losses.regression(
            outputs, target, lambda error: element(error, **delta)
        ),
        None,
    )


def _compare_metrics(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    expected = json.loads(str(arrays["expected"]))
    for group, recorded in expected.items():
        if group in _SETTINGS:
            continue
        if f"{group}/prediction" in arrays:
            computed = _regression(arrays[f"{group}/prediction"], arrays[f"{group}/target"])
        else:
            logits, scores, target = (
                arrays[f"{group}/{name}"] for name in ("logits", "scores", "target")
            )
            computed = _multilabel(logits, scores, target, float(expected["threshold"]))
        if unknown := sorted(set(recorded) - set(computed)):
            raise DataError(
                f"{group}: found metrics {unknown}, expected some of {sorted(computed)}; remove "
                "the others"
            )
        for name, value in recorded.items():
            value = [math.nan if x is None else x for x in np.atleast_1d(np.array(value, object))]
            yield f"{group}/{name}", _difference(np.atleast_1d(computed[name]), value)


def _regression(predicted: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    scores = regression_scores(predicted, target)
    known = ~np.isnan(target)
    squared = (predicted.astype(np.float64) - target)[known] ** 2
    return {
        **{name: average(values) for name, values in scores.items()},
        **{f"{name}_per_output": values for name, values in scores.items()},
        "mse": average(scores["rmse"] ** 2),
        "rmse_pooled": np.sqrt(squared.mean()),
    }


def _multilabel(
    logits: np.ndarray, scores: np.ndarray, target: np.ndarray, threshold: float
) -> dict[str, Any]:
    logits = logits.astype(np.float64)
    losses = np.logaddexp(0, np.where(target == 1, -logits, logits))
    losses = np.where(np.isnan(target), 0, losses).sum(axis=1)
    scorer = multilabel.Scorer(scores, scores >= threshold, target, losses=losses)
    values = dict(zip(multilabel.NAMES, scorer(np.ones(len(target))), strict=True))
    per_label = scorer.per_label()
    return {name: values[own] for name, own in _MULTILABEL.items()} | {
        name: per_label[own] for name, own in _PER_LABEL.items()
    }
