"""Percentile bootstrap intervals of statistics over samples, or over groups of them."""

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
    """A statistic, or several at once, on resampled samples; arguments as `bootstrap_interval`.

    Raises:
        DataError: fewer than two groups (or samples), or not one group a sample.
    """
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(np.max(member)) + 1 if n else 0
    if units < 2 or len(member) != n:
        raise DataError(
            f"bootstrap: found {units} groups over {len(member)} samples, expected at least 2 over "
            f"{n}; give one group a sample, or state no interval"
        )
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        drawn.append(statistic(times[member]))
    return np.array(drawn, np.float64)


def interval_of(
    draws: Float[np.ndarray, " replicates"], level: float = 0.95
) -> tuple[float, float]:
    """The middle `level` of the draws; NaN draws are left out, and all NaN gives NaN ends.

    Raises:
        DataError: a level that is not between 0 and 1.
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

    Whole groups are drawn with replacement where `groups` is given: overlapping windows of one
    recording are not independent, and an interval that drew them one by one would be too narrow.
    The interval covers the choice of samples alone, not that of the training seed.

    Args:
        statistic: a value per sample, whose mean is meant, or a function from how often each sample
            was drawn (`[n]`, whole numbers) to the statistic. It returns NaN where the statistic is
            undefined (a correlation of one sample drawn `n` times); such draws are left out.
        n: number of samples.
        seed: equal seeds draw equal samples, whatever the statistic.
        level: probability covered.
        groups: name of each sample's group.
        replicates: resamplings.

    Returns:
        The lower and the upper end; NaN where the statistic is undefined on every draw.

    Raises:
        DataError: fewer than two groups (or samples), values that are not `n`, or a level that is
            not between 0 and 1.
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
    """Value and 95 % interval of several statistics on the same draws, in plain numbers.

    Args:
        statistic: from how often each sample counts, `[n]`, to the statistics, `[k]`; NaN where one
            is undefined.
        n: number of samples.
        seed: see `bootstrap_interval`.
        groups: see `bootstrap_interval`.
        replicates: see `bootstrap_interval`.

    Returns:
        `k` times `{value, low, high}`: None for a value that is undefined, and for the ends of an
        interval where the value is undefined or there are fewer than two groups (or samples).
    """
    values = np.asarray(statistic(np.ones(n, np.int64)), np.float64)
    ends = [(float("nan"), float("nan"))] * len(values)
    if (n if groups is None else len(np.unique(groups))) >= 2:
        draws = bootstrap_draws(statistic, n, seed, groups=groups, replicates=replicates)
        ends = [interval_of(column) for column in draws.T]
    return [estimate(float(value), *pair) for value, pair in zip(values, ends, strict=True)]


def estimate(value: float, low: float, high: float) -> dict[str, float | None]:
    """`{value, low, high}` in plain numbers: None for what is undefined or infinite.

    An interval is stated whole or not at all, and never around a value that is not there.
    """
    if not np.isfinite([value, low, high]).all():
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    return {"value": value, "low": low, "high": high}
