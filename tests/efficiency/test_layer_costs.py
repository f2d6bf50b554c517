"""Costs of layers against values worked by hand, and against those of the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import corners

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.efficiency import model_costs as models
from sft_jax.efficiency.flops import matmul_flops
from sft_jax.efficiency.layer_costs import layer_costs
from sft_jax.efficiency.variants import VARIANTS, variant

D, H, F, C = 8, 2, 3, 4  # width, heads, features, classes
SIZES = {"max": {"window": 2}, "attn_topk": {"k": 3}, "cls_topk": {"k": 3}}


def one(length=6, pool="max", **changes):
    """A model of one modality whose MLP is as wide as its tokens."""
    spec = ModalitySpec(name="a", length=length, feature_dim=F, pool=pool, **SIZES[pool])
    model = {"num_classes": C, "embed_dim": D, "num_heads": H, "num_post_layers": 2}
    return Config(modalities=(spec,), model=ModelConfig(**{**model, **changes}))


def two(**changes):
    config = one(**changes)
    other = ModalitySpec(name="b", length=5, feature_dim=2, pool="max", window=5)
    return dataclasses.replace(config, modalities=(*config.modalities, other))


def attention(queries, keys):
    """Multiply-adds of query and output, key and value, scores and mix."""
    return 2 * queries * D * D + 2 * keys * D * D + 2 * queries * keys * D


def block(tokens):
    return attention(tokens, tokens) + 2 * tokens * D * D


def by_name(config):
    return {layer.layer: layer for layer in layer_costs(config)}


def test_layers_of_dense_attention_by_hand():
    layers = by_name(one())
    found = {
        name: (layer.count, layer.tokens, layer.forward_flops, layer.train_flops)
        for name, layer in layers.items()
        if name != "elsewhere"
    }
    tokenizer, first, pooling, fused = 6 * F * D, block(7), attention(7, 7), 2 * block(4)
    # The backward pass has two products for each of the forward pass; data need no gradient.
    assert found == {
        "encoder_a/tokenizer": (1, 0, 2 * tokenizer, 2 * 2 * tokenizer),
        "encoder_a/block_0": (1, 7, 2 * first, 3 * 2 * first),
        "encoder_a/pooling": (1, 7, 2 * pooling, 3 * 2 * pooling),
        "fusion/block": (2, 4, 2 * fused, 3 * 2 * fused),
        "head": (1, 0, 2 * D * C, 3 * 2 * D * C),
    }
    maps = {name: layer.attention_bytes for name, layer in layers.items()}
    assert maps["encoder_a/block_0"] == maps["encoder_a/pooling"] == 4 * H * 7 * 7
    assert maps["fusion/block"] == 2 * 4 * H * 4 * 4
    assert sum(maps.values()) == 4 * H * (2 * 49 + 2 * 16)


def test_saliency_is_one_more_product_without_a_gradient():
    pooling = by_name(one(pool="attn_topk"))["encoder_a/pooling"]
    saliency = 2 * 7 * 7  # of the map whose heads are summed
    assert pooling.forward_flops == 2 * attention(7, 7) + saliency
    assert pooling.train_flops == 3 * 2 * attention(7, 7) + saliency
    assert pooling.attention_bytes == 4 * H * 7 * 7


def test_tokens_kept_by_cls_are_the_only_queries():
    pooling = by_name(one(pool="cls_topk"))["encoder_a/pooling"]
    row = 2 * 7  # of CLS, whose mean over heads ranks the tokens
    assert pooling.forward_flops == 2 * attention(1 + 3, 7) + row
    assert pooling.train_flops == 3 * 2 * attention(1 + 3, 7) + row
    assert pooling.attention_bytes == 4 * H * (1 + 3) * 7
    assert pooling.tokens == 7


@pytest.mark.parametrize(("pool", "queries"), [("max", 12), ("cls_topk", 3)])
def test_maps_of_the_block_sparse_pattern_by_hand(pool, queries):
    config = one(length=12, pool=pool, attention="fixed", stride=4, expressivity=2)
    layers = by_name(config)
    # Three blocks with two summary tokens each, CLS, and the two others of the own block.
    row = 3 * 2 + 1 + 2
    cls = 1 + 12
    assert layers["encoder_a/block_0"].attention_bytes == 4 * H * (12 * row + cls)
    assert layers["encoder_a/pooling"].attention_bytes == 4 * H * (queries * row + cls)
    fused = 1 + (12 // 2 if pool == "max" else 3)
    assert layers["fusion/block"].attention_bytes == 2 * 4 * H * fused**2


@pytest.mark.parametrize(
    "name", corners([n for n in VARIANTS if n not in ("dense", "fixed")], "cls_topk", "sft", "mbt")
)
def test_layers_add_up_to_the_model(name):
    config = variant(two(), name)
    layers = layer_costs(config)
    logits, shapes = models.output_sum(models.with_plain_attention(config))
    assert sum(layer.forward_flops for layer in layers) == matmul_flops(logits, shapes)
    assert sum(layer.train_flops for layer in layers) == matmul_flops(jax.grad(logits), shapes)
    assert models.forward_gflop(config) * 1e9 == pytest.approx(
        sum(layer.forward_flops for layer in layers), rel=1e-12
    )
    assert all(layer.layer != "elsewhere" or not layer.forward_flops for layer in layers)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # CLS and the tokens of each modality, and both after windows of 2 and 5.
        ("sft", {"encoder_a/block_0": 7, "encoder_b/block_0": 6, "fusion/block": 1 + 3 + 1}),
        ("dense", {"encoder_a/pooling": 7, "encoder_b/pooling": 6, "fusion/block": 1 + 6 + 5}),
        ("late", {"first_a": 7, "rest_a/block": 7, "rest_b/block": 6}),
        ("concat", {"first": 7 + 6, "rest/block": 1 + 12 // 2}),
        ("unimodal", {"encoder/block": 7, "fusion/block": 1 + 3}),
        # Four bottleneck tokens.
        ("mbt", {"encoder_a/block": 7, "fusion/block_a": 11, "fusion/block_b": 10}),
        # A crossmodal block reads the other modality.
        ("mult", {"cross_0_1/block": 6, "cross_1_0/block": 7, "memory_0/block": 7}),
    ],
)
def test_tokens_of_every_model_by_hand(name, tokens):
    layers = by_name(variant(two(num_post_layers=3), name))
    assert {layer: layers[layer].tokens for layer in tokens} == tokens


def test_maps_of_stacked_and_shared_layers_count_each_layer_once():
    layers = by_name(variant(two(num_post_layers=3), "mbt"))
    # Of four layers, the last two have bottlenecks.
    assert layers["encoder_a/block"].count == layers["fusion/block_a"].count == 2
    assert layers["encoder_a/block"].attention_bytes == 2 * 4 * H * 7 * 7
    assert layers["fusion/block_a"].attention_bytes == 2 * 4 * H * 11 * 11
    cross = by_name(variant(two(), "mult"))["cross_0_1/block"]
    assert cross.attention_bytes == 4 * H * 7 * 6


def test_saved_bytes_are_those_that_a_gradient_is_handed(rng):
    """Differentiated for real: what the backward pass holds beside parameters and constants."""
    config = one(implementation="xla")
    logits, shapes = models.output_sum(config)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    held = {id(leaf): leaf for leaf in jax.tree.leaves(jax.vjp(logits, params)[1])}
    # A parameter may come as a copy. The count has that of the head's small kernel in it.
    given = {leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(params))}
    kept = [x for x in held.values() if x.ndim and np.asarray(x).tobytes() not in given]
    expected = sum(x.nbytes for x in kept)
    saved = sum(layer.saved_bytes for layer in layer_costs(config))
    assert saved in (expected, expected + 4 * D * C)


def test_saved_bytes_follow_the_implementation_and_the_depth():
    written_out = by_name(one(length=256, implementation="xla"))
    streamed = by_name(one(length=256, implementation="streamed"))
    for name in ("encoder_a/block_0", "encoder_a/pooling"):
        size = 4 * H * 257 * 257
        assert streamed[name].saved_bytes < size < written_out[name].saved_bytes
        assert streamed[name].attention_bytes == written_out[name].attention_bytes == size
    deep = by_name(one(length=256, implementation="streamed", num_post_layers=6))
    before, after = streamed["fusion/block"].saved_bytes, deep["fusion/block"].saved_bytes
    assert after == 3 * before
