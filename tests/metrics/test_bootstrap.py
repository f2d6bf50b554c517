import math

import numpy as np
import pytest

from sft_jax.metrics import bootstrap
from sft_jax.types import DataError


def test_bootstrap_matches_the_binomial_interval():
    hits = np.repeat([1.0, 0.0], [300, 100])
    low, high = bootstrap.bootstrap_interval(hits, 400, seed=0, replicates=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)


def test_bootstrap_over_groups_sees_that_copies_are_no_information():
    rng = np.random.default_rng(1)
    values = rng.normal(size=30)
    alone = bootstrap.bootstrap_interval(values, 30, seed=5)
    copies = np.repeat(values, 10)
    grouped = bootstrap.bootstrap_interval(copies, 300, 5, groups=np.repeat(np.arange(30), 10))
    assert grouped == pytest.approx(alone)
    naive = bootstrap.bootstrap_interval(copies, 300, 5)
    assert (alone[1] - alone[0]) / (naive[1] - naive[0]) == pytest.approx(math.sqrt(10), rel=0.15)


def test_bootstrap_of_two_unequal_groups_takes_the_three_possible_means():
    # Groups (0, 0, 0) and (1): drawn twice each or once both gives means 0, 1/4 or 1.
    seen = []

    def mean(times):
        assert times[0] == times[1] == times[2]
        seen.append(float(times[3] / times.sum()))
        return seen[-1]

    groups = np.array(["a", "a", "a", "b"])
    assert bootstrap.bootstrap_interval(mean, 4, seed=0, groups=groups, replicates=200) == (
        0.0,
        1.0,
    )
    assert set(seen) == {0.0, 0.25, 1.0}


def test_bootstrap_seed_level_and_callable():
    values = np.arange(20.0)
    wide = bootstrap.bootstrap_interval(values, 20, 3)
    assert bootstrap.bootstrap_interval(values, 20, 3) == wide
    assert bootstrap.bootstrap_interval(values, 20, 4) != wide
    assert bootstrap.bootstrap_interval(lambda t: t @ values / t.sum(), 20, 3) == wide
    narrow = bootstrap.bootstrap_interval(values, 20, 3, 0.5)
    assert wide[0] < narrow[0] < 9.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1, "statistic": np.ones(1)}, "found 1 groups"),
        ({"n": 0, "statistic": np.ones(0)}, "found 0 groups"),
        ({"groups": np.array(["a"] * 4)}, "found 1 groups over 4 samples"),
        ({"statistic": np.ones(3)}, "found 3 values, expected one for each of 4"),
        ({"level": 1.0}, "found level 1.0"),
    ],
)
def test_bootstrap_errors(arguments, message):
    with pytest.raises(DataError, match=message):
        bootstrap.bootstrap_interval(**{"statistic": np.ones(4), "n": 4, "seed": 0, **arguments})


def test_draws_on_which_the_statistic_is_undefined_are_left_out():
    values = np.arange(20.0)

    def mean_without_the_first(times):
        return np.nan if times[0] else times @ values / times.sum()

    low, high = bootstrap.bootstrap_interval(mean_without_the_first, 20, 3)
    draws = bootstrap.bootstrap_draws(mean_without_the_first, 20, 3)
    kept = draws[~np.isnan(draws)]
    # The first sample is missing from a draw with probability (19/20)^20.
    assert len(kept) / len(draws) == pytest.approx(0.95**20, abs=0.05)
    assert (low, high) == pytest.approx(tuple(np.quantile(kept, [0.025, 0.975])))
    nowhere = bootstrap.bootstrap_interval(lambda times: math.nan, 20, 3)
    assert np.isnan(nowhere).all()


def test_estimates_of_several_statistics_share_their_draws():
    values, groups = np.arange(20.0), np.arange(20) // 2

    def statistics(times):
        mean = times @ values / times.sum()
        return np.array([mean, 2 * mean, np.nan])

    first, second, third = bootstrap.estimates(statistics, 20, seed=3, groups=groups)
    low, high = bootstrap.bootstrap_interval(values, 20, 3, groups=groups)
    assert first == {"value": 9.5, "low": low, "high": high}
    assert second == {key: 2 * value for key, value in first.items()}
    assert third == {"value": None, "low": None, "high": None}
    alone = bootstrap.estimates(statistics, 20, seed=3, groups=np.zeros(20))
    assert alone[0] == {"value": 9.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1.0, 0.5, 2.0), (1.0, 0.5, 2.0)),
        ((1.0, 0.5, math.inf), (1.0, None, None)),
        ((math.nan, 0.5, 2.0), (None, None, None)),
        ((math.inf, 0.5, math.nan), (None, None, None)),
    ],
)
def test_nothing_undefined_or_infinite_is_stated(given, expected):
    assert tuple(bootstrap.estimate(*given).values()) == expected
