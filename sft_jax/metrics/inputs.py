"""Checks of the inputs of metrics: weights, probabilities, classes and finite values."""

import numpy as np

from sft_jax.types import Array, DataError


def counted(weight: Array | None, n: int) -> np.ndarray:
    """How much each of `n` rows counts `[n]`; once if `weight` is None.

    Returns:
        int64 if all weights are whole numbers, else float64.

    Raises:
        DataError: The weights are not `n` finite numbers of at least 0, or no row counts.
    """
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    if len(weight) != n or not (np.isfinite(weight) & (weight >= 0)).all() or not weight.any():
        raise DataError(
            f"weight: found {weight}, expected {n} finite numbers of at least 0, 0 on padding rows "
            "alone, with at least one real row; check the weights of the data, and how the batches "
            "were padded and joined"
        )
    times = weight.astype(np.int64)
    return times if (times == weight).all() else weight


def distributions(
    probabilities: Array, label: Array, weight: Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities in float64, labels, and how often each row counts; checks rows that count.

    Raises:
        DataError: A row is not a distribution, a label is not a class, or no row counts.
    """
    probabilities, label = np.asarray(probabilities, np.float64), np.asarray(label)
    times = counted(weight, len(label))
    is_counted = times > 0
    rows = probabilities[is_counted]
    good = np.asarray(np.isfinite(rows).all(axis=1) & (rows >= 0).all(axis=1))
    good[good] = np.abs(rows[good].sum(axis=1) - 1) < 1e-2  # rows rounded to bfloat16 pass
    if not good.all():
        at = int(np.flatnonzero(is_counted)[np.argmin(good)])
        raise DataError(
            f"probabilities: found {int((~good).sum())} rows that are no distribution (the first: "
            f"row {at}, {probabilities[at]}), expected finite values >= 0 that sum to 1; take the "
            "softmax of the logits, and check them for NaN"
        )
    check_classes("label", label[is_counted], probabilities.shape[1])
    return np.where(is_counted[:, None], probabilities, 0.0), label, times


def finite(what: str, values: Array, times: np.ndarray) -> np.ndarray:
    """Values in float64, checked on rows that count, and 0 on others.

    Raises:
        DataError: There is not one row per entry of `times`, or a value is NaN or infinite.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(times):
        raise DataError(f"{what}: found {len(values)} rows, expected {len(times)}, one per sample")
    is_counted = (times > 0).reshape(-1, *[1] * (values.ndim - 1))
    bad = ~np.isfinite(values) & is_counted
    if bad.any():
        raise DataError(
            f"{what}: found {int(bad.sum())} values that are NaN or infinite (the first: row "
            f"{int(np.argwhere(bad)[0, 0])}), expected finite ones; check model and data"
        )
    return np.where(is_counted, values, 0.0)


def check_classes(what: str, classes: np.ndarray, num_classes: int):
    """Raises `DataError` unless every class is in 0 to `num_classes - 1`."""
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise DataError(
            f"{what}: found classes {classes.min()} to {classes.max()}, expected 0 to "
            f"{num_classes - 1}; check that data and model agree on num_classes"
        )
