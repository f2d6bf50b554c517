import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.config.run import OptimizerConfig
from sft_jax.training.optimizer import Plateau, build_optimizer, learning_rate


def test_warm_up_rises_in_equal_parts_to_the_full_rate():
    schedule = learning_rate(OptimizerConfig(learning_rate=0.4), 100, 4)
    rates = [float(schedule(step)) for step in (0, 1, 2, 3, 4, 99)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_no_warm_up_starts_at_the_full_rate():
    schedule = learning_rate(OptimizerConfig(learning_rate=0.4), 100, 0)
    assert float(schedule(0)) == pytest.approx(0.4)


def test_cosine_falls_to_zero_after_warm_up():
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, schedule="cosine"), 12, 4)
    # Eight steps from the end of warm-up: half-way at step 8, a quarter at 6, nothing left at 12.
    expected = {0: 0.25, 3: 1.0, 4: 1.0, 8: 0.5, 12: 0.0, 20: 0.0}
    expected[6] = 0.5 * (1 + math.cos(math.pi / 4))
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step


@given(total=st.integers(1, 50), warmup=st.integers(0, 60))
def test_rates_stay_between_zero_and_the_full_rate(total, warmup):
    for kind in ("constant", "cosine", "plateau"):
        schedule = learning_rate(OptimizerConfig(learning_rate=0.5, schedule=kind), total, warmup)
        rates = np.asarray(schedule(np.arange(64)))[:total]
        assert ((rates >= 0) & (rates <= 0.5)).all()
        # A cosine that starts after a single step of training has nowhere left to fall.
        assert rates.max() > 0


class NumpyAdamW:
    """Written down from arXiv 1711.05101, algorithm 2, with the gradient clipped first."""

    def __init__(self, config, rates, decayed):
        self.config, self.rates, self.decayed = config, rates, decayed
        self.m, self.v, self.t = {}, {}, 0

    def step(self, params, grads):
        c = self.config
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        if c.clip_norm and norm > c.clip_norm:
            grads = {name: g * c.clip_norm / norm for name, g in grads.items()}
        rate = self.rates[self.t]
        self.t += 1
        result = {}
        for name, g in grads.items():
            self.m[name] = c.b1 * self.m.get(name, 0) + (1 - c.b1) * g
            self.v[name] = c.b2 * self.v.get(name, 0) + (1 - c.b2) * g**2
            m = self.m[name] / (1 - c.b1**self.t)
            v = self.v[name] / (1 - c.b2**self.t)
            decay = c.weight_decay * params[name] if name in self.decayed else 0
            result[name] = params[name] - rate * (m / (np.sqrt(v) + 1e-8) + decay)
        return result


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("clip_norm", [0.0, 0.8, 100.0])
def test_three_steps_of_adamw_by_hand(weight_decay, clip_norm):
    config = OptimizerConfig(
        learning_rate=0.1, weight_decay=weight_decay, b1=0.8, b2=0.9, clip_norm=clip_norm
    )
    rng = np.random.default_rng(0)
    shapes = {
        "kernel": (3, 2),
        "qkv_kernel": (2, 2),
        "embedding": (4,),
        "bias": (2,),
        "scale": (2,),
    }
    shapes |= {"positions": (1, 3), "cls": (1, 1)}
    expected = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    schedule = learning_rate(config, 3, 2)
    optimizer = build_optimizer(config, schedule)
    params = {"layer": {name: jnp.asarray(p, jnp.float32) for name, p in expected.items()}}
    opt_state = optimizer.init(params)
    oracle = NumpyAdamW(config, [0.05, 0.1, 0.1], {"kernel", "qkv_kernel", "embedding"})
    for _ in range(3):
        grads = {name: rng.normal(size=shape, scale=2.0) for name, shape in shapes.items()}
        expected = oracle.step(expected, grads)
        given_grads = {"layer": {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}}
        updates, opt_state = optimizer.update(given_grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    for name, value in expected.items():
        np.testing.assert_allclose(params["layer"][name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_plateau_waits_for_its_patience_then_cuts():
    config = OptimizerConfig(schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    plateau, scales = Plateau(), []
    for loss in (1.0, 0.5, 0.6, 0.5, 0.55, 0.7, 0.6, 0.6, 0.4):
        plateau = plateau.update(loss, config)
        scales.append(plateau.scale)
    # Best at the second; the third validation without improvement after it cuts, and counts anew.
    np.testing.assert_allclose(scales, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert plateau == Plateau(scale=plateau.scale, best=0.4, stale=0)


def test_an_improvement_too_small_to_matter_does_not_count():
    config = OptimizerConfig(schedule="plateau", plateau_patience=5)
    plateau = Plateau().update(1.0, config).update(1.0 - 5e-5, config)
    assert (plateau.best, plateau.stale) == (1.0, 1)
    assert plateau.update(1.0 - 2e-4, config) == Plateau(1.0, 1.0 - 2e-4, 0)


def test_patience_zero_cuts_at_once():
    config = OptimizerConfig(schedule="plateau", plateau_patience=0, plateau_factor=0.5)
    plateau = Plateau().update(1.0, config).update(1.0, config)
    assert plateau == Plateau(0.5, 1.0, 0)
