"""Comparison of metrics with recorded values for the same inputs.

A recording (`metrics.npz`) has any number of classifications and regressions, by prefix:

- `<p>_logits [n, c]`, `<p>_labels [n]` and `<p>_expected`, a JSON object with `top<k>` (percent),
  `mAP`, `mAUC`, `dprime` and, for sentiment classes with a neutral one in the middle, `acc2`, `f1`.
- `<p>_pred [n]`, `<p>_true [n]`, `<p>_expected_exclude_zero` and `<p>_expected_include_zero`, JSON
  objects with `mae`, `corr`, `acc7`, `acc5`, and `acc2`, `f1` without and with targets of 0.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax

from sft_jax.files.json_files import map_of, number
from sft_jax.metrics.classification import top_k
from sft_jax.metrics.ranking import ranking_metrics
from sft_jax.metrics.sentiment import classification_view, regression_view
from sft_jax.types import DataError

# Suffixes of the package's metrics for the recorded `acc2` and `f1`.
SUFFIX = {"exclude_zero": "_nonzero", "include_zero": "_has0"}
RANKING = {"mAP": "mAP", "mAUC": "mAUC", "dprime": "d_prime"}


def compare(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float | None, float]]:
    """Computes every recorded metric.

    Args:
        arrays: Entries of the file (see the module's docstring).

    Returns:
        `{"<entry>/<metric>": (computed, recorded)}` in the order of the file, with shares as
        fractions. The computed value is None if it is undefined.

    Raises:
        DataError: An entry is missing or unexpected, or a metric is unknown.
    """
    compared: dict[str, Any] = {}
    used: set[str] = set()
    for entry in (name for name in arrays if "_expected" in name):
        prefix, _, kind = entry.rpartition("_expected")
        names = ("logits", "labels") if not kind else ("pred", "true")
        inputs = [f"{prefix}_{name}" for name in names]
        missing = [name for name in inputs if name not in arrays]
        if missing or kind.removeprefix("_") not in ("", *SUFFIX):
            raise DataError(
                f"{entry}: found {sorted(arrays)}, expected {' and '.join(inputs)} too, and an "
                f"ending in _expected or _expected_{' or '.join(SUFFIX)}; record the file again"
            )
        used |= {entry, *inputs}
        recorded = _recorded(entry, arrays[entry])
        first, second = (_numbers(name, arrays[name]) for name in inputs)
        if (
            len(first) != len(second)
            or not len(first)
            or (first.ndim, second.ndim) != ((1, 1) if kind else (2, 1))
            or not (kind or second.dtype.kind in "iu")
        ):
            raise DataError(
                f"{entry}: found {inputs[0]} {first.shape} and {inputs[1]} {second.dtype} "
                f"{second.shape}, "
                f"expected {'[n] and [n]' if kind else '[n, c] and whole numbers [n]'}; record the "
                "file again"
            )
        if kind:
            computed = _regression(first, second, SUFFIX[kind.removeprefix("_")])
        else:
            computed = _classification(first, second, recorded)
        unknown = sorted(set(recorded) - set(computed))
        if unknown:
            raise DataError(
                f"{entry}: found metrics {unknown}, expected some of {sorted(computed)}; remove "
                "the others"
            )
        compared |= {f"{entry}/{name}": (computed[name], x) for name, x in recorded.items()}
    if set(arrays) - used or not compared:
        raise DataError(
            f"metrics file: found {sorted(set(arrays) - used)} without expected values, expected "
            "<prefix>_logits, _labels, _expected or <prefix>_pred, _true, _expected_*; record the "
            "file again"
        )
    return compared


def _recorded(entry: str, text: np.ndarray) -> dict[str, float]:
    try:
        values = json.loads(str(text))
        map_of(number(undefined=True))(values, "")
        values = {name: float(value) for name, value in values.items()}
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{entry}: found {str(text)[:60]!r}, expected a JSON object of numbers; record the "
            "file again"
        ) from error
    return {name: value / 100 if _k(name) else value for name, value in values.items()}


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu" or not array.ndim or not np.isfinite(array).all():
        raise DataError(
            f"{name}: found {array.dtype} of shape {array.shape}, expected finite numbers; record "
            "the file again"
        )
    return array


def _k(name: str) -> int:
    """The `k` of a metric `top<k>`; 0 for any other metric."""
    match = re.fullmatch(r"top(\d{1,9})", name)
    return int(match[1]) if match else 0


def _classification(
    logits: np.ndarray, label: np.ndarray, recorded: Mapping[str, float]
) -> dict[str, float | None]:
    c = logits.shape[1]
    probabilities = softmax(logits.astype(np.float64), axis=1)
    ranking = ranking_metrics(logits, label)
    computed = {name: ranking[key] for name, key in RANKING.items()}
    for name in recorded:
        if 1 <= _k(name) <= c:
            computed[name] = top_k(probabilities, label, _k(name))
    if c % 2:
        neutral = c // 2
        computed |= classification_view(logits.argmax(axis=1) - neutral, label - neutral)
    return computed


def _regression(predicted: np.ndarray, truth: np.ndarray, suffix: str) -> dict[str, float | None]:
    scores = regression_view(predicted, truth)
    shared = {name: scores[name] for name in ("mae", "corr", "acc7", "acc5")}
    return shared | {name: scores[f"{name}{suffix}"] for name in ("acc2", "f1")}
