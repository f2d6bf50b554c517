"""The bottleneck's two exchanges, beside one block a modality taken by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from sft_jax.config.run import ModelConfig
from sft_jax.models.baselines.mbt import BottleneckLayer
from sft_jax.models.layers import BlockConfig, EncoderBlock

NAMES = ("a", "b", "c")
LENGTHS = {"a": 3, "b": 5, "c": 2}
# Samples: all there, b missing, all but a missing, none there.
PRESENT = {"a": [1, 1, 1, 0], "b": [1, 0, 0, 0], "c": [1, 1, 0, 0]}
BOTTLENECKS = 2


def block():
    return BlockConfig.from_model(ModelConfig(num_classes=2, embed_dim=6, num_heads=2))


@functools.cache
def case():
    """Tokens, masks and bottleneck of four samples, and parameters of a layer."""
    rng = np.random.default_rng(0)
    size = {name: (4, length + 1, 6) for name, length in LENGTHS.items()}
    tokens = tuple(jnp.asarray(rng.normal(size=size[n]), jnp.float32) for n in NAMES)
    masks = []
    for name in NAMES:
        mask = np.repeat(np.array(PRESENT[name], bool)[:, None], LENGTHS[name] + 1, axis=1)
        mask[:, 0] = True
        masks.append(jnp.asarray(mask))
    bottleneck = jnp.asarray(rng.normal(size=(4, BOTTLENECKS, 6)), jnp.float32)
    layer = BottleneckLayer(NAMES, block(), "average")
    state = (tokens, bottleneck)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), state, tuple(masks), None)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, jnp.float32), shapes
    )
    return state, tuple(masks), params


def by_hand(exchange):
    """Every sample and modality on its own, in the order of the modalities."""
    (tokens, bottleneck), masks, params = case()
    out = [np.array(z) for z in tokens]
    handed_on = np.array(bottleneck)
    run = jax.jit(EncoderBlock(block()).apply, compiler_options=QUICK)
    for row in range(4):
        shared, made = bottleneck[row], []
        for i, name in enumerate(NAMES):
            z = jnp.concatenate([tokens[i][row], shared])[None]
            mask = jnp.concatenate([masks[i][row], jnp.ones(BOTTLENECKS, bool)])[None]
            own = {"params": params["params"][f"block_{name}"]}
            joined = run(own, z, mask, None)[0]
            out[i][row] = joined[:-BOTTLENECKS]
            if PRESENT[name][row]:
                made.append(np.array(joined[-BOTTLENECKS:]))
                if exchange == "sequential":
                    shared = joined[-BOTTLENECKS:]
        if made:
            handed_on[row] = made[-1] if exchange == "sequential" else np.mean(made, axis=0)
    return out, handed_on


@pytest.mark.parametrize("exchange", ["sequential", "average"])
def test_a_layer_by_hand(exchange):
    state, masks, params = case()
    layer = BottleneckLayer(NAMES, block(), exchange)
    tokens, bottleneck = jax.jit(layer.apply, compiler_options=QUICK)(params, state, masks, None)
    expected, handed_on = by_hand(exchange)
    for given, wanted in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(given, wanted, atol=1e-5)
    np.testing.assert_allclose(bottleneck, handed_on, atol=1e-5)
    # A sample without any modality leaves the bottleneck as it was.
    np.testing.assert_array_equal(bottleneck[3], state[1][3])
