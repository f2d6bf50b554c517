"""Parameters that are frozen, or have a learning rate of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config.io import from_dict, override, to_dict
from sft_jax.config.run import Config, OptimizerConfig
from sft_jax.training.optimizer import build_optimizer
from sft_jax.types import ConfigError

PARAMS = {
    "body": {"a": {"kernel": jnp.full(3, 2.0)}, "b": {"kernel": jnp.full(3, 3.0)}},
    "head": {"kernel": jnp.full(3, 4.0)},
}
GRADS = jax.tree.map(lambda x: x * jnp.arange(1.0, 4.0), PARAMS)


def updates(freeze=(), grads=GRADS, steps=3, **settings):
    settings = {"weight_decay": 0.1, "clip_norm": 0.5, **settings}
    optimizer = build_optimizer(OptimizerConfig(**settings), lambda step: 1e-2, freeze)
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        found, state = jax.jit(optimizer.update)(grads, state, PARAMS)
    return found


def test_frozen_parameters_are_as_if_they_were_not_there():
    """Neither decayed nor counted in the norm that clips the others."""
    found = updates(freeze=("body/*",))
    for leaf in jax.tree.leaves(found["body"]):
        np.testing.assert_array_equal(leaf, 0.0)
    absent = {"body": jax.tree.map(jnp.zeros_like, GRADS["body"]), "head": GRADS["head"]}
    alone = updates(grads=absent)
    np.testing.assert_allclose(found["head"]["kernel"], alone["head"]["kernel"], rtol=1e-6)
    # Gradients that are not finite do not matter, either.
    broken = {**GRADS, "body": jax.tree.map(lambda x: x * jnp.nan, GRADS["body"])}
    jax.tree.map(np.testing.assert_array_equal, updates(freeze=("body/*",), grads=broken), found)


def test_the_first_rate_that_matches_counts():
    found = updates(rates=("body/a/*=0.5", "body/*=4", "*/a/*=100"))
    plain = updates()
    factors = {"body": {"a": {"kernel": 0.5}, "b": {"kernel": 4.0}}, "head": {"kernel": 1.0}}
    jax.tree.map(
        lambda got, one, factor: np.testing.assert_allclose(got, one * factor, rtol=1e-6),
        found,
        plain,
        factors,
    )


def test_without_these_settings_the_state_has_the_layout_of_stored_checkpoints():
    config = OptimizerConfig(weight_decay=0.1)
    plain = optax.chain(
        optax.clip_by_global_norm(0.8),
        optax.adamw(lambda step: 1e-2, mask=lambda params: jax.tree.map(lambda _: True, params)),
    )
    got = build_optimizer(config, lambda step: 1e-2).init(PARAMS)
    assert jax.tree.structure(got) == jax.tree.structure(plain.init(PARAMS))


@pytest.mark.parametrize(
    ("freeze", "rates", "setting"),
    [(("boy/*",), (), "train.freeze"), ((), ("head=2",), "optimizer.rates")],
)
def test_a_pattern_without_a_match_is_refused(freeze, rates, setting):
    optimizer = build_optimizer(OptimizerConfig(rates=rates), lambda step: 1e-2, freeze)
    with pytest.raises(ConfigError, match=rf"{setting}: given .* begin with one of body, head"):
        jax.eval_shape(optimizer.init, PARAMS)


@pytest.mark.parametrize("text", ["head", "=2", "head/*=x", "head/*=-1", "head/*=nan", "a=inf"])
def test_a_text_that_is_no_rate_is_refused(text):
    with pytest.raises(ConfigError, match=r"optimizer\.rates: given .*, such as 'head/\*=10'"):
        OptimizerConfig(rates=(text,))


def test_the_settings_are_stored():
    given = {"train.freeze": ("a/*", "b"), "optimizer.rates": ("c=d=0.5",)}
    config = override(Config(), given)
    assert from_dict(to_dict(config)) == config
    assert config.optimizer.rate_factors == (("c=d", 0.5),)
