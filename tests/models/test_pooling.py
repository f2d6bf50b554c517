import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_jax.config import BlockStyle
from sft_jax.models import pooling
from sft_jax.models.layers import BlockConfig
from sft_jax.models.pooling import POOL_FUNCTIONS, SparsePooling
from sft_jax.types import POOLS, ModalitySpec

T, D = 7, 2


def spec(pool, size=None, length=T):
    sizes = {"attn_topk": {"k": size}, "none": {}}.get(pool, {"window": size})
    return ModalitySpec(name="a", length=length, feature_dim=1, pool=pool, **sizes)


def apply(pool, size, tokens, mask, saliency=None):
    """Pools one sample; numpy in, numpy out."""
    tokens, mask = jnp.asarray(tokens, jnp.float32)[None], jnp.asarray(mask, bool)[None]
    if saliency is not None:
        saliency = jnp.asarray(saliency, jnp.float32)[None]
    pooled = POOL_FUNCTIONS[pool](tokens, mask, saliency, spec(pool, size, tokens.shape[1]))
    return jax.tree.map(lambda x: np.asarray(x[0]), vars(pooled))


def oracle(pool, size, tokens, mask, saliency):
    """Tokens, mask and indices of one sample, a loop at a time over what is real."""
    real = [i for i in range(len(mask)) if mask[i]]
    if pool == "none":
        slots = [tokens[i] if mask[i] else None for i in range(len(mask))]
        return slots, None
    if pool == "attn_topk":
        ranked = sorted(real, key=lambda i: (-saliency[i], i))[:size]
        chosen = ranked + [-1] * (size - len(ranked))
        return [tokens[i] if i >= 0 else None for i in chosen], chosen
    reduce = {"max": np.max, "avg": np.mean}[pool]
    windows = max(1, len(real) // size) if real else 0
    slots = [reduce(tokens[real[w * size : (w + 1) * size]], axis=0) for w in range(windows)]
    return slots + [None] * (len(mask) // size - windows), None


cases = st.fixed_dictionaries(
    {
        "pool": st.sampled_from(POOLS),
        "size": st.integers(1, T),
        "mask": st.lists(st.booleans(), min_size=T, max_size=T),
        # Few values, so that ties are common.
        "saliency": st.lists(st.sampled_from([0.0, 0.125, 0.25]), min_size=T, max_size=T),
        "seed": st.integers(0, 100),
    }
)


def test_the_table_holds_every_pool():
    assert tuple(POOL_FUNCTIONS) == POOLS


@given(case=cases)
def test_pools_match_the_oracle(case):
    tokens = np.random.default_rng(case["seed"]).normal(size=(T, D)).astype(np.float32)
    slots, indices = oracle(case["pool"], case["size"], tokens, case["mask"], case["saliency"])
    pooled = apply(case["pool"], case["size"], tokens, case["mask"], case["saliency"])
    expected = np.array([np.zeros(D) if slot is None else slot for slot in slots])
    np.testing.assert_allclose(pooled["tokens"], expected, atol=1e-6)
    np.testing.assert_array_equal(pooled["mask"], [slot is not None for slot in slots])
    assert len(slots) == spec(case["pool"], case["size"]).num_pooled
    if indices is None:
        assert pooled["indices"] is None
        assert pooled["saliency"] is None
    else:
        np.testing.assert_array_equal(pooled["indices"], indices)
        kept = [case["saliency"][i] if i >= 0 else 0.0 for i in indices]
        np.testing.assert_array_equal(pooled["saliency"], kept)


# --- by hand ----------------------------------------------------------------------------------

TOKENS = np.array([[1.0, -7], [2, -6], [3, -5], [4, -4], [5, -3], [6, -2], [7, -1]])
ALL = [True] * T
LEFT = [False, False, True, True, True, True, True]
RIGHT = [True, True, True, True, True, False, False]
INSIDE = [True, False, True, True, False, True, True]


def test_top_k_by_hand():
    saliency = [0.1, 0.3, 0.2, 0.3, 0.0, 0.05, 0.05]
    pooled = apply("attn_topk", 3, TOKENS, ALL, saliency)
    np.testing.assert_array_equal(pooled["indices"], [1, 3, 2])  # the tie: lowest index first
    np.testing.assert_array_equal(pooled["tokens"], TOKENS[[1, 3, 2]])
    np.testing.assert_array_equal(pooled["saliency"], np.float32([0.3, 0.3, 0.2]))
    assert pooled["mask"].all()


def test_top_k_keeps_the_lowest_indices_of_equals():
    pooled = apply("attn_topk", 4, TOKENS, LEFT, [0.5] * T)
    np.testing.assert_array_equal(pooled["indices"], [2, 3, 4, 5])


def test_masked_tokens_never_beat_real_ones():
    # Masked tokens look best, real ones as bad as can be.
    saliency = [9.0, 9.0, 0.0, -1.0, 0.0, 9.0, 9.0]
    mask = [False, False, True, True, True, False, False]
    pooled = apply("attn_topk", 5, TOKENS, mask, saliency)
    np.testing.assert_array_equal(pooled["indices"], [2, 4, 3, -1, -1])
    np.testing.assert_array_equal(pooled["mask"], [True, True, True, False, False])
    np.testing.assert_array_equal(pooled["tokens"][3:], np.zeros((2, D)))
    np.testing.assert_array_equal(pooled["saliency"], [0, 0, -1, 0, 0])


@pytest.mark.parametrize(
    ("mask", "maximum", "average", "filled"),
    [
        # Windows of three: tokens 0-2, 3-5; the tail, token 6, is dropped.
        (ALL, [[3, -5], [6, -2]], [[2, -6], [5, -3]], [True, True]),
        # Five real tokens fill one window, wherever the padding is.
        (LEFT, [[5, -3], [0, 0]], [[4, -4], [0, 0]], [True, False]),
        (RIGHT, [[3, -5], [0, 0]], [[2, -6], [0, 0]], [True, False]),
        # Real tokens 0, 2, 3 (values 1, 3, 4) are the first three in their order.
        (INSIDE, [[4, -4], [0, 0]], [[8 / 3, -16 / 3], [0, 0]], [True, False]),
        # Fewer than a window: all of them, in one.
        ([False] * 5 + [True] * 2, [[7, -1], [0, 0]], [[6.5, -1.5], [0, 0]], [True, False]),
        ([False] * T, [[0, 0], [0, 0]], [[0, 0], [0, 0]], [False, False]),
    ],
)
def test_windows_by_hand(mask, maximum, average, filled):
    for pool, expected in (("max", maximum), ("avg", average)):
        pooled = apply(pool, 3, TOKENS, mask)
        np.testing.assert_allclose(pooled["tokens"], expected, rtol=1e-6)
        np.testing.assert_array_equal(pooled["mask"], filled)


def test_max_of_negative_values_is_not_zero():
    # Five real tokens in a window of six: the empty place does not count.
    pooled = apply("max", 6, -TOKENS - 100, LEFT)
    np.testing.assert_array_equal(pooled["tokens"], [[-103, -95]])


def test_dense_fusion_keeps_everything_real():
    pooled = apply("none", None, TOKENS, INSIDE)
    np.testing.assert_array_equal(pooled["tokens"], np.where(np.array(INSIDE)[:, None], TOKENS, 0))
    np.testing.assert_array_equal(pooled["mask"], INSIDE)


@given(n=st.integers(0, T), window=st.integers(1, T), shift=st.integers(0, T))
def test_n_real_tokens_fill_a_window_at_least(n, window, shift):
    mask = np.roll(np.arange(T) < n, shift)
    expected = min(max(1, n // window), T // window) if n else 0
    for pool in ("max", "avg"):
        pooled = apply(pool, window, TOKENS, mask)
        np.testing.assert_array_equal(pooled["mask"], np.arange(T // window) < expected)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_all_true_masks_equal_the_plain_formulas_exactly(window, rng):
    tokens = rng.normal(size=(T, D)).astype(np.float32)
    k = T // window
    cut = tokens[: k * window].reshape(k, window, D)
    np.testing.assert_array_equal(apply("max", window, tokens, ALL)["tokens"], cut.max(axis=1))
    mean = np.asarray(jnp.asarray(cut).mean(axis=1))
    np.testing.assert_array_equal(apply("avg", window, tokens, ALL)["tokens"], mean)
    np.testing.assert_array_equal(apply("none", None, tokens, ALL)["tokens"], tokens)
    saliency = rng.random(T).astype(np.float32)
    expected = tokens[np.argsort(-saliency)[:window]]
    kept = apply("attn_topk", window, tokens, ALL, saliency)["tokens"]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_finite_and_stay_off_masked_tokens(pool, dtype):
    mask = jnp.array([ALL, LEFT, RIGHT, INSIDE, [False] * T, [True] + [False] * 6])
    # Equal tokens: the maximum is a tie everywhere.
    tokens = jnp.ones((6, T, D), dtype)
    saliency = jnp.zeros((6, T))

    def loss(tokens, saliency):
        pooled = POOL_FUNCTIONS[pool](tokens, mask, saliency, spec(pool, 3))
        assert pooled.tokens.dtype == dtype
        return (pooled.tokens.astype(jnp.float32) ** 2).sum()

    grads, by_saliency = jax.grad(loss, argnums=(0, 1))(tokens, saliency)
    assert np.isfinite(np.asarray(grads, np.float32)).all()
    assert not by_saliency.any()
    assert not np.asarray(grads, np.float32)[~np.asarray(mask)].any()
    assert (np.abs(np.asarray(grads, np.float32)).sum(axis=(1, 2)) > 0).tolist() == [
        *[True] * 4,
        False,
        True,
    ]


def test_average_in_bfloat16_is_summed_in_float32():
    # The sum, 263, is 264 in bfloat16, a third of which is 88; a third of 263 rounds to 87.5.
    tokens = jnp.array([256.0, 4.0, 3.0], jnp.bfloat16)[None, :, None]
    pooled = pooling.avg_pool(tokens, jnp.ones((1, 3), bool), None, spec("avg", 3, 3))
    assert pooled.tokens.dtype == jnp.bfloat16
    assert float(pooled.tokens[0, 0, 0]) == 87.5


# --- the score and the block ----------------------------------------------------------------------


def test_saliency_weights_by_hand():
    mask = jnp.array([[True, True, False, True], [False] * 4, [True] * 4])
    expected = [[0, 1 / 3, 1 / 3, 0, 1 / 3], [0] * 5, [0, 0.25, 0.25, 0.25, 0.25]]
    np.testing.assert_allclose(pooling.saliency_weights(mask), expected, rtol=1e-6)


BLOCK = BlockConfig(
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


@pytest.mark.parametrize("pool", [name for name in POOLS if name != "attn_topk"])
def test_pools_that_do_not_select_ask_for_no_saliency(pool, monkeypatch, rng):
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
