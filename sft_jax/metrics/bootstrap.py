"""Percentile bootstrap intervals of statistics, over samples or groups of samples."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Real, Shaped

from sft_jax.types import Array, DataError


def bootstrap_draws(
    statistic: Callable[[np.ndarray], float | np.ndarray],
    n: int,
    seed: int,
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    replicates: int = 1000,
) -> Float[np.ndarray, "replicates ..."]:
    """Values of one or several statistics on resampled data; see `bootstrap_interval`.

    Raises:
        DataError: There are fewer than two groups (or samples), or not one group per sample.
    """
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(np.max(member)) + 1 if n else 0
    if units < 2 or len(member) != n:
        raise DataError(
            f"bootstrap: found {units} groups over {len(member)} samples, expected at least 2 over "
            f"{n}; give one group per sample, or state no interval"
        )
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        draws.append(statistic(times[member]))
    return np.array(draws, np.float64)


def interval_of(
    draws: Float[np.ndarray, " replicates"], level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval that covers `level` of the draws; NaN draws are ignored.

    Returns:
        The lower and the upper end; NaN if all draws are.

    Raises:
        DataError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"bootstrap: found level {level}, expected it between 0 and 1, e.g. 0.95")
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Real[Array, " n"] | Callable[[np.ndarray], float],
    n: int,
    seed: int,
    level: float = 0.95,
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    replicates: int = 1000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over `n` samples (Efron, 1979).

    With `groups`, entire groups are resampled: overlapping windows of a recording are not
    independent, and resampling them separately would give intervals that are too narrow. The
    interval covers the choice of samples, not that of the training seed.

    Args:
        statistic: Value of each sample, to take the mean of; or a function from how often each
            sample was drawn (integers `[n]`) to the statistic, NaN if undefined. Undefined draws,
            such as the correlation of one sample drawn `n` times, are ignored.
        n: Number of samples.
        seed: Seed; equal seeds draw equal samples for any statistic.
        level: Coverage of the interval.
        groups: Group of each sample.
        replicates: Number of resampled data sets.

    Returns:
        The lower and the upper end; NaN if the statistic is undefined in every draw.

    Raises:
        DataError: There are fewer than two groups (or samples), the number of values is not `n`, or
            the level is not between 0 and 1.
    """
    if not callable(statistic):
        values = np.asarray(statistic, np.float64)
        if len(values) != n:
            raise DataError(f"bootstrap: found {len(values)} values, expected one for each of {n}")

        def statistic(times: np.ndarray) -> float:
            return float(times @ values / times.sum())

    draws = bootstrap_draws(statistic, n, seed, groups=groups, replicates=replicates)
    return interval_of(draws, level)


def estimates(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    seed: int,
    groups: Shaped[np.ndarray, " n"] | None = None,
    replicates: int = 1000,
) -> list[dict[str, float | None]]:
    """Values and 95 % intervals of several statistics on the same draws.

    Args:
        statistic: Function from how often each sample counts `[n]` to the statistics `[k]`; NaN
            marks undefined ones.
        n: Number of samples.
        seed: See `bootstrap_interval`.
        groups: See `bootstrap_interval`.
        replicates: See `bootstrap_interval`.

    Returns:
        `{value, low, high}` of each statistic. An undefined value is None; so are the ends if the
        value is undefined or there are fewer than two groups (or samples).
    """
    values = np.asarray(statistic(np.ones(n, np.int64)), np.float64)
    ends = [(float("nan"), float("nan"))] * len(values)
    if (n if groups is None else len(np.unique(groups))) >= 2:
        draws = bootstrap_draws(statistic, n, seed, groups=groups, replicates=replicates)
        ends = [interval_of(column) for column in draws.T]
    return [estimate(float(value), *pair) for value, pair in zip(values, ends, strict=True)]


def estimate(value: float, low: float, high: float) -> dict[str, float | None]:
    """Returns `{value, low, high}`, with None for an undefined or infinite value.

    The ends are both None if one of them or the value is undefined or infinite.
    """
    if not np.isfinite([value, low, high]).all():
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    return {"value": value, "low": low, "high": high}
