"""What is recomputed in the backward pass: the same numbers from less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import corners

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ConcatOptions, NoOptions, UnimodalOptions
from sft_jax.config.run import Config, ModelConfig
from sft_jax.efficiency.layer_costs import layer_costs
from sft_jax.efficiency.model_costs import forward_gflop, train_gflop
from sft_jax.models import registry

SPECS = (
    ModalitySpec(name="a", length=12, feature_dim=3, pool="cls_topk", k=3),
    ModalitySpec(name="b", length=9, feature_dim=4, pool="max", window=3),
)
MODEL_OPTIONS = {
    "unimodal": UnimodalOptions(modality="b"),
    "concat": ConcatOptions(window=3),
}
POLICIES = ("none", "dots", "block")


def config_of(name, remat, specs=SPECS, **changes):
    sizes = {"embed_dim": 16, "num_heads": 2, "num_pre_layers": 2, "num_post_layers": 3}
    sizes["dropout"] = 0.2
    model = ModelConfig(
        name=name,
        preset="modern",
        num_classes=3,
        remat=remat,
        options=MODEL_OPTIONS.get(name, NoOptions()),
        **{**sizes, **changes},
    )
    return Config(modalities=specs, model=model)


def batch_of(specs, b=2):
    rng = np.random.default_rng(0)
    inputs = {
        s.name: jnp.asarray(rng.normal(size=(b, s.length, s.feature_dim)), jnp.float32)
        for s in specs
    }
    mask = {s.name: jnp.asarray(np.arange(s.length) < s.length - 2).repeat(b) for s in specs}
    mask = {s.name: mask[s.name].reshape(s.length, b).T for s in specs}
    return inputs, mask


@functools.cache
def outcome(name, remat, keyed=True):
    """Loss, gradients, and the shapes of the parameters by path."""
    model = registry.build(config_of(name, remat))
    inputs, mask = batch_of(SPECS)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(2))
    params = jax.jit(model.init)(jax.random.key(0), inputs, mask)

    def loss(params):
        logits = model.apply(params, inputs, mask, keys if keyed else None).logits
        return (logits * jnp.arange(6.0).reshape(2, 3)).sum()

    return jax.jit(jax.value_and_grad(loss))(params), params


@pytest.mark.parametrize("remat", corners(POLICIES[1:], "block"))
@pytest.mark.parametrize("name", corners(registry.MODELS, "sft"))
def test_gradients_and_parameters_are_the_same(name, remat):
    """With dropout: what is computed again draws the same numbers again."""
    (loss, gradients), params = outcome(name, remat)
    (expected_loss, expected), expected_params = outcome(name, "none")
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)  # paths as well
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest),
        gradients,
        expected,
    )


# Those whose blocks stand in loops of their own; the others are stacks as sft's are.
@pytest.mark.parametrize("name", corners(["sft", "mbt", "mult"], "sft"))
def test_less_is_kept_and_nothing_else_is_counted(name):
    configs = [config_of(name, remat) for remat in POLICIES]
    kept = [sum(layer.saved_bytes for layer in layer_costs(config)) for config in configs]
    assert kept[0] > kept[1] > kept[2]
    for count in (forward_gflop, train_gflop):
        assert len({count(config) for config in configs}) == 1


def test_what_is_kept_of_a_block_by_hand():
    """Of `[t, d]` tokens: the input alone, and with it the products with parameters."""
    spec = ModalitySpec(name="a", length=15, feature_dim=3, pool="none")
    sizes = {"num_pre_layers": 0, "num_post_layers": 2, "dropout": 0.0}
    kept = {}
    for remat in POLICIES[1:]:
        layers = layer_costs(config_of("sft", remat, (spec,), **sizes))
        kept[remat] = next(x.saved_bytes for x in layers if x.layer == "fusion/block")
    tokens = 2 * 4 * 16 * 16  # two layers of 16 tokens of width 16, in float32
    assert kept["block"] == tokens
    # Query, key and value, output of the attention, hidden layer of four widths.
    assert kept["dots"] == tokens * (1 + 3 + 1 + 4)


def test_a_stack_takes_less_memory():
    sizes = {"num_pre_layers": 0, "num_post_layers": 12}
    specs = (ModalitySpec(name="a", length=64, feature_dim=3, pool="none"),)
    inputs, mask = batch_of(specs)

    def temporary(remat):
        model = registry.build(config_of("sft", remat, specs, **sizes))
        params = jax.eval_shape(model.init, jax.random.key(0), inputs, mask)
        loss = jax.grad(lambda params: model.apply(params, inputs, mask).logits.sum())
        return jax.jit(loss).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, dots, block = map(temporary, POLICIES)
    assert none > dots > block
