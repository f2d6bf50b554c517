import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sft_jax.config.modality import COUNTING_POOLS, POOLS, ModalitySpec
from sft_jax.config.model import BlockStyle
from sft_jax.models import pooling
from sft_jax.models.layers import BlockConfig
from sft_jax.models.pooling import SparsePooling
from sft_jax.models.pools import norm_topk, saliency_weights

T = 7
ALL = [True] * T
INSIDE = [True, False, True, True, False, True, True]


def spec(pool, size=None):
    sizes = {"k": size} if pool in COUNTING_POOLS else {"window": size}
    return ModalitySpec(
        name="a", length=T, feature_dim=1, pool=pool, **(sizes if pool != "none" else {})
    )


def test_saliency_weights_by_hand():
    mask = jnp.array([[True, True, False, True], [False] * 4, [True] * 4])
    expected = [[0, 1 / 3, 1 / 3, 0, 1 / 3], [0] * 5, [0, 0.25, 0.25, 0.25, 0.25]]
    np.testing.assert_allclose(saliency_weights(mask), expected, rtol=1e-6)


BLOCK = BlockConfig(
    embed_dim=4,
    num_heads=2,
    style=BlockStyle(
        mlp_ratio=1.0, activation="relu", affine_attention_norm=False, embedding_std=1.0
    ),
    dropout=0.0,
    implementation="xla",
    dtype=jnp.dtype("float32"),
)


def test_the_block_ranks_by_the_columns_of_its_own_attention(rng):
    """The whole block, recomputed in float64 from its parameters."""
    d, h, k = 4, 2, 3
    block = SparsePooling(spec("attn_topk", k), BLOCK)
    z = jnp.asarray(rng.normal(size=(2, T + 1, d)), jnp.float32)
    mask = jnp.array([[True, *ALL], [True, *INSIDE]])
    params = block.init(jax.random.key(0), z, mask, None)
    cls, pooled = block.apply(params, z, mask, None)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]["attention"])
    assert set(weights) == {"attention"}  # the paper's norm has no parameters
    weights = weights["attention"]
    z = np.asarray(z, np.float64)
    normed = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
    query, key, value = (
        np.einsum("btd,dhe->bhte", normed, weights["qkv_kernel"][:, i])
        + weights["qkv_bias"][i][None, :, None]
        for i in range(3)
    )
    scores = np.einsum("bhqe,bhke->bhqk", query, key) / np.sqrt(d / h)
    scores = np.where(np.asarray(mask)[:, None, None], scores, -np.inf)
    attention = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bhke->bqhe", attention, value)
    z = z + np.einsum("bqhe,hed->bqd", mixed, weights["out"]["kernel"]) + weights["out"]["bias"]
    np.testing.assert_allclose(cls, z[:, 0], atol=1e-5)
    for i in range(2):
        real = np.flatnonzero(np.asarray(mask)[i, 1:])
        inner = attention[i].mean(axis=0)[1:, 1:]
        saliency = inner[real].mean(axis=0)
        order = sorted(real, key=lambda j: -saliency[j])[:k]
        np.testing.assert_array_equal(pooled.indices[i], order)
        np.testing.assert_allclose(pooled.saliency[i], saliency[order], atol=1e-6)
        np.testing.assert_allclose(pooled.tokens[i], z[i, 1:][order], atol=1e-5)


def test_cls_topk_against_the_whole_block(rng):
    """The same parameters, every query computed, and the CLS row of the map ranked by hand."""
    k = 3
    z = jnp.asarray(rng.normal(size=(2, T + 1, 4)), jnp.float32)
    mask = jnp.array([[True, *ALL], [True, *INSIDE]])
    block = SparsePooling(spec("cls_topk", k), BLOCK)
    params = block.init(jax.random.key(0), z, mask, None)
    cls, pooled = block.apply(params, z, mask, None)
    full = pooling.AttentionResidual(BLOCK)
    only_cls = jnp.zeros((2, T + 1)).at[:, 0].set(1)
    own = {"params": params["params"]["attention"]}
    expected, row = full.apply(own, z, mask, None, only_cls)
    np.testing.assert_allclose(cls, expected[:, 0], atol=1e-6)
    for i in range(2):
        score = np.where(mask[i, 1:], row[i, 1:], -1)
        order = np.argsort(-score)[:k]
        np.testing.assert_array_equal(pooled.indices[i], order)
        np.testing.assert_allclose(pooled.saliency[i], score[order], atol=1e-6)
        np.testing.assert_allclose(pooled.tokens[i], expected[i, 1:][order], atol=1e-6)


def test_cls_topk_leaves_slots_empty_where_too_little_is_real(rng):
    z = jnp.asarray(rng.normal(size=(2, T + 1, 4)), jnp.float32)
    mask = jnp.array([[True, *[False] * 5, True, True], [True, *[False] * T]])
    block = SparsePooling(spec("cls_topk", 3), BLOCK)
    params = block.init(jax.random.key(0), z, mask, None)
    pooled = block.apply(params, z, mask, None)[1]
    assert set(pooled.indices[0].tolist()) == {5, 6, -1}
    np.testing.assert_array_equal(pooled.mask, [[True, True, False], [False] * 3])
    assert not np.asarray(pooled.tokens)[~np.asarray(pooled.mask)].any()


def largest_array(pool, t):
    """Entries of the largest array that the block computes."""
    block = SparsePooling(ModalitySpec(name="a", length=t, feature_dim=1, pool=pool, k=3), BLOCK)
    z, mask = jnp.ones((1, t + 1, 4)), jnp.ones((1, t + 1), bool)
    params = jax.eval_shape(block.init, jax.random.key(0), z, mask, None)
    text = jax.make_jaxpr(lambda p: block.apply(p, z, mask, None))(params)
    return max(out.aval.size for eqn in jaxpr_equations(text.jaxpr) for out in eqn.outvars)


def jaxpr_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from jaxpr_equations(inner)


@pytest.mark.parametrize("pool", [n for n, kind in POOLS.items() if kind.selects_queries])
def test_pools_that_select_queries_compute_only_their_rows(pool):
    # k rows of two heads over t + 1 keys, against (t + 1)^2 for the whole map.
    t = 400
    assert largest_array(pool, t) <= 2 * 3 * 4 * (t + 1)
    assert largest_array("attn_topk", t) >= (t + 1) ** 2


def test_norm_topk_by_hand():
    tokens = jnp.array([[[1.0, 0], [-3, 4], [2, 2], [0, -5], [9, 9]]])
    mask = jnp.array([[True, True, True, True, False]])
    # Norms 1, 5, 8^0.5 and 5 of the real tokens: the tie goes to the lower index.
    indices, scores = norm_topk(tokens, mask, jnp.zeros((1, 5)), spec("norm_topk", 3))
    assert indices.tolist() == [[1, 3, 2]]
    assert scores is None


@pytest.mark.parametrize("k", [1, 3, T])
def test_norm_topk_against_the_whole_block(k, rng):
    """The same parameters with every query computed; the scores come from before the norm."""
    z = jnp.asarray(rng.normal(size=(2, T + 1, 4)), jnp.float32)
    mask = jnp.array([[True, *ALL], [True, *INSIDE]])
    block = SparsePooling(spec("norm_topk", k), BLOCK)
    params = block.init(jax.random.key(0), z, mask, None)
    cls, pooled = block.apply(params, z, mask, None)
    attention = {"params": params["params"]["attention"]}
    expected, _ = pooling.AttentionResidual(BLOCK).apply(attention, z, mask, None)
    np.testing.assert_allclose(cls, expected[:, 0], atol=1e-6)
    for i in range(2):
        real = [j for j in range(T) if mask[i, 1 + j]]
        order = sorted(real, key=lambda j: -float(np.sum(np.square(z[i, 1 + j]))))[:k]
        np.testing.assert_array_equal(pooled.indices[i], order + [-1] * (k - len(order)))
        np.testing.assert_array_equal(pooled.mask[i], np.arange(k) < len(order))
        kept = np.asarray(pooled.tokens[i])
        np.testing.assert_allclose(kept[: len(order)], expected[i, 1:][jnp.array(order)], atol=1e-6)
        assert not kept[len(order) :].any()


def test_padding_does_not_change_norm_topk(rng):
    z = jnp.asarray(rng.normal(size=(1, 5, 4)), jnp.float32)
    # The padding has larger norms than any token.
    padding = jnp.full((1, 3, 4), 100.0)
    padded = jnp.concatenate([z[:, :1], padding, z[:, 1:]], axis=1)
    mask = jnp.array([[True, False, False, False, True, True, True, True]])
    block = SparsePooling(spec("norm_topk", 3), BLOCK)
    params = block.init(jax.random.key(0), z, jnp.ones((1, 5), bool), None)
    expected_cls, expected = block.apply(params, z, jnp.ones((1, 5), bool), None)
    cls, pooled = block.apply(params, padded, mask, None)
    np.testing.assert_allclose(cls, expected_cls, atol=1e-6)
    np.testing.assert_allclose(pooled.tokens, expected.tokens, atol=1e-6)
    np.testing.assert_array_equal(pooled.indices, expected.indices + 3)


def test_the_choice_of_norm_topk_has_no_gradient(rng):
    """The gradient is that of the whole block whose rows are picked by constant indices."""
    z = jnp.asarray(rng.normal(size=(1, T + 1, 4)), jnp.float32)
    mask, weights = jnp.ones((1, T + 1), bool), jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    block = SparsePooling(spec("norm_topk", 3), BLOCK)
    params = block.init(jax.random.key(0), z, mask, None)
    attention = {"params": params["params"]["attention"]}
    indices = block.apply(params, z, mask, None)[1].indices[0]

    def pooled(z):
        return jnp.sum(block.apply(params, z, mask, None)[1].tokens[0] * weights)

    def picked(z):
        tokens, _ = pooling.AttentionResidual(BLOCK).apply(attention, z, mask, None)
        return jnp.sum(tokens[0, 1:][indices] * weights)

    np.testing.assert_allclose(jax.grad(pooled)(z), jax.grad(picked)(z), atol=1e-5)


@pytest.mark.parametrize(
    "pool", [n for n, kind in POOLS.items() if not (kind.saliency or kind.selects_queries)]
)
def test_pools_that_do_not_rank_ask_for_no_saliency(pool, monkeypatch, rng):
    asked = []
    attend = pooling.AttentionResidual.__call__

    def spy(self, z, key_mask, keys, query_weights=None):
        asked.append(query_weights)
        return attend(self, z, key_mask, keys, query_weights)

    monkeypatch.setattr(pooling.AttentionResidual, "__call__", spy)
    z = jnp.asarray(rng.normal(size=(1, T + 1, 4)), jnp.float32)
    block = SparsePooling(spec(pool, None if pool == "none" else 2), BLOCK)
    block.init_with_output(jax.random.key(0), z, jnp.ones((1, T + 1), bool), None)
    assert asked == [None]
