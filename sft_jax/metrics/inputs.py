"""Which rows of a split count, and whether they can be scored: what every metric checks first."""

import numpy as np

from sft_jax.types import Array, DataError


def counted(weight: Array | None, n: int) -> np.ndarray:
    """How often each of `n` rows counts, int64 `[n]`: 0 on padding; once where `weight` is None.

    Raises:
        DataError: weights that are no whole numbers, not `n` of them, or no row that counts.
    """
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    times = np.where(np.isfinite(weight), weight, -1.0).round().astype(np.int64)
    if len(times) != n or not (times == weight).all() or (times < 0).any() or not times.any():
        raise DataError(
            f"weight: found {weight}, expected {n} whole numbers, 0 on rows that pad and 1 on real "
            "ones, with at least one real row; check how the batches were padded and joined"
        )
    return times


def distributions(
    probabilities: Array, label: Array, weight: Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 probabilities, labels, and how often each row counts; only those rows are checked.

    Raises:
        DataError: a row is not a distribution, a label is not a class, or no row counts.
    """
    probabilities, label = np.asarray(probabilities, np.float64), np.asarray(label)
    times = counted(weight, len(label))
    kept = times > 0
    rows = probabilities[kept]
    good = np.asarray(np.isfinite(rows).all(axis=1) & (rows >= 0).all(axis=1))
    good[good] = np.abs(rows[good].sum(axis=1) - 1) < 1e-2  # rows rounded to bfloat16 pass
    if not good.all():
        at = int(np.flatnonzero(kept)[np.argmin(good)])
        raise DataError(
            f"probabilities: found {int((~good).sum())} rows that are no distribution (the first: "
            f"row {at}, {probabilities[at]}), expected finite values >= 0 that sum to 1; take the "
            "softmax of the logits, and check them for NaN"
        )
    check_classes("label", label[kept], probabilities.shape[1])
    return np.where(kept[:, None], probabilities, 0.0), label, times


def finite(what: str, values: Array, times: np.ndarray) -> np.ndarray:
    """`values` as float64, checked on the rows that count, and 0 on the others.

    Raises:
        DataError: not one row for each of `times`, or a value that is NaN or infinite.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(times):
        raise DataError(f"{what}: found {len(values)} rows, expected {len(times)}, one a sample")
    kept = (times > 0).reshape(-1, *[1] * (values.ndim - 1))
    bad = ~np.isfinite(values) & kept
    if bad.any():
        raise DataError(
            f"{what}: found {int(bad.sum())} values that are NaN or infinite (the first: row "
            f"{int(np.argwhere(bad)[0, 0])}), expected finite ones; check model and data"
        )
    return np.where(kept, values, 0.0)


def check_classes(what: str, classes: np.ndarray, num_classes: int):
    """Raises `DataError` unless every class is in 0 to `num_classes - 1`."""
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise DataError(
            f"{what}: found classes {classes.min()} to {classes.max()}, expected 0 to "
            f"{num_classes - 1}; check that data and model agree on num_classes"
        )
