import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.data.builders.base import Moments


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(-1e4, 1e4))
def test_equals_moments_of_all_real_steps_at_once(seed, records, offset):
    rng = np.random.default_rng(seed)
    moments, kept = Moments.zero(3), [np.zeros((0, 3))]
    for _ in range(records):
        steps = (offset + rng.normal(size=(rng.integers(1, 9), 3))).astype(np.float32)
        mask = rng.random(len(steps)) < 0.7
        moments = moments.add(steps, mask)
        kept.append(steps[mask].astype(np.float64))
    real = np.concatenate(kept)
    found = moments.statistics()
    assert found.count == len(real)
    if len(real):
        np.testing.assert_allclose(found.mean, real.mean(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.std, real.std(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.rms, np.sqrt((real**2).mean()), rtol=1e-10)


def test_values_by_hand():
    moments = Moments.zero(2).add(
        np.array([[1, 10], [3, 10], [99, 99]], np.float32), np.array([True, True, False])
    )
    found = moments.statistics()
    assert found.mean == (2.0, 10.0)
    assert found.std == (1.0, 0.0)
    assert found.rms == np.sqrt((1 + 9 + 100 + 100) / 4)
    assert found.count == 2


def test_nothing_seen_gives_zeros():
    found = Moments.zero(1).add(np.ones((2, 1), np.float32), np.zeros(2, bool)).statistics()
    assert (found.mean, found.std, found.rms, found.count) == ((0.0,), (0.0,), 0.0, 0)
