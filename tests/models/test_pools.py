import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sft_jax.config.modality import COUNTING_POOLS, POOLS, ModalitySpec
from sft_jax.models import pools
from sft_jax.models.pools import POOL_FUNCTIONS

T, D = 7, 2


# Pools that select queries are part of their block (test_pooling.py).
NAMES = tuple(name for name, kind in POOLS.items() if not kind.selects_queries)
SALIENCY_POOLS = tuple(name for name, kind in POOLS.items() if kind.saliency)
DRAWING = ("random", "attn_random", "strided_random")


def spec(pool, size=None, length=T):
    sizes = {"k": size} if pool in COUNTING_POOLS else {"window": size}
    return ModalitySpec(
        name="a", length=length, feature_dim=1, pool=pool, **(sizes if pool != "none" else {})
    )


def apply(pool, size, tokens, mask, saliency=None, keys=None):
    """Pools one sample; numpy in, numpy out."""
    tokens, mask = jnp.asarray(tokens, jnp.float32)[None], jnp.asarray(mask, bool)[None]
    if saliency is not None:
        saliency = jnp.asarray(saliency, jnp.float32)[None]
    pooled = POOL_FUNCTIONS[pool](tokens, mask, saliency, keys, spec(pool, size, tokens.shape[1]))
    return jax.tree.map(lambda x: np.asarray(x[0]), vars(pooled))


# --- oracles: one sample at a time, loops over what is real -----------------------------------


def oracle_noise(real, t):
    """The draws of a sample at evaluation: the r-th real token gets the r-th."""
    tiny = np.finfo(np.float32).tiny
    drawn = np.asarray(jax.random.uniform(jax.random.key(0), (t,), minval=tiny), np.float64)
    return {token: drawn[rank] for rank, token in enumerate(real)}


def top(score, real, size):
    ranked = sorted(real, key=lambda i: (-score[i], i))[:size]
    return ranked + [-1] * (size - len(ranked))


def medoids(tokens, saliency, real, size):
    """Weighted k-medoids by the words of the paper's table, in float64."""
    distance = np.abs(tokens[:, None].astype(np.float64) - tokens[None]).sum(axis=-1)
    chosen = top(saliency, real, size)
    centres = [c for c in chosen if c >= 0]
    for _ in range(5):
        members = [[] for _ in centres]
        for i in real:
            members[int(np.argmin([distance[i, c] for c in centres]))].append(i)
        for cluster, inside in enumerate(members):
            if inside:
                costs = [sum(distance[i, j] * saliency[j] for j in inside) for i in inside]
                centres[cluster] = inside[int(np.argmin(costs))]
    return centres + [-1] * (size - len(centres))


def merged(tokens, real, size):
    """Bipartite merging with lists that shrink."""
    left = [(tokens[i].astype(np.float64), 1.0) for i in real]
    while len(left) > size:
        units = [x / max(np.linalg.norm(x), 1e-12) for x, _ in left]
        odd = range(1, len(left), 2)
        pairs = []
        for i in range(0, len(left), 2):
            similar = [units[i] @ units[j] for j in odd]
            best = int(np.argmax(similar))
            pairs.append((-similar[best], i, odd[best]))
        pairs = sorted(pairs)[: min(len(left) - size, len(left) // 2)]
        totals = [(x * n, n) for x, n in left]
        for _, i, j in pairs:
            totals[j] = (totals[j][0] + totals[i][0], totals[j][1] + totals[i][1])
        gone = {i for _, i, _ in pairs}
        left = [(x / n, n) for i, (x, n) in enumerate(totals) if i not in gone]
    return [x for x, _ in left] + [None] * (size - len(left))


def oracle(pool, size, tokens, mask, saliency):
    """Tokens and indices of one sample; None stands for an empty slot, or no indices."""
    t = len(mask)
    real = [i for i in range(t) if mask[i]]
    noise = oracle_noise(real, t)
    if pool == "none" or (pool == "attn_kmedoids" and size >= t):
        return [tokens[i] if mask[i] else None for i in range(t)], None
    if pool == "merge":
        return merged(tokens, real, size), None
    if pool == "channel_topk":
        ranked = -np.sort(-tokens[real], axis=0)[:size]
        return [*ranked] + [None] * (size - len(ranked)), None
    if pool in COUNTING_POOLS:
        score = {"random": noise, "attn_topk": saliency, "attn_kmedoids": saliency}.get(pool)
        if pool == "attn_random":
            score = {
                i: np.log(max(saliency[i], np.finfo(np.float32).tiny)) - np.log(-np.log(noise[i]))
                for i in real
            }
        chosen = medoids(tokens, saliency, real, size) if "medoids" in pool else None
        chosen = chosen or top(score, real, size)
        return [tokens[i] if i >= 0 else None for i in chosen], chosen
    windows = max(1, len(real) // size) if real else 0
    cuts = [real[w * size : (w + 1) * size] for w in range(windows)]
    empty = t // size - windows
    if pool == "strided_random":
        chosen = [max(cut, key=lambda i: noise[i]) for cut in cuts]
        return [tokens[i] for i in chosen] + [None] * empty, chosen + [-1] * empty
    if pool == "attn_avg":
        weights = [np.array([saliency[i] for i in cut])[:, None] for cut in cuts]
        slots = [
            (tokens[cut] * w).mean(axis=0) / (w.mean() + 1e-5)
            for cut, w in zip(cuts, weights, strict=True)
        ]
    else:
        slots = [{"max": np.max, "avg": np.mean}[pool](tokens[cut], axis=0) for cut in cuts]
    return slots + [None] * empty, None


cases = st.fixed_dictionaries(
    {
        "pool": st.sampled_from(NAMES),
        "size": st.integers(1, T),
        "mask": st.lists(st.booleans(), min_size=T, max_size=T),
        # Few values, so that ties are common.
        "saliency": st.lists(st.sampled_from([0.0, 0.125, 0.25]), min_size=T, max_size=T),
        "seed": st.integers(0, 100),
    }
)


def test_the_table_holds_every_pool():
    assert set(POOL_FUNCTIONS) == set(NAMES)


# A token between two others, whose costs are all the same: the lowest index is the medoid.
BETWEEN = {
    "pool": "attn_kmedoids",
    "size": 1,
    "mask": [False, False, True, True, False, False, True],
    "saliency": [0.0, 0.0, 0.0, 0.125, 0.0, 0.0, 0.125],
    "seed": 0,
}


@settings(max_examples=150)
@given(case=cases)
@example(case=BETWEEN)
def test_pools_match_the_oracle(case):
    tokens = np.random.default_rng(case["seed"]).normal(size=(T, D)).astype(np.float32)
    if case["pool"] == "attn_kmedoids":
        # Costs that are the same are so in float32, too, since these sums need no rounding.
        tokens = np.round(tokens * 8) / 8
    slots, indices = oracle(case["pool"], case["size"], tokens, case["mask"], case["saliency"])
    pooled = apply(case["pool"], case["size"], tokens, case["mask"], case["saliency"])
    expected = np.array([np.zeros(D) if slot is None else slot for slot in slots])
    np.testing.assert_allclose(pooled["tokens"], expected, atol=2e-6, rtol=1e-5)
    np.testing.assert_array_equal(pooled["mask"], [slot is not None for slot in slots])
    assert len(slots) == spec(case["pool"], case["size"]).num_pooled
    if indices is None:
        assert pooled["indices"] is None
        assert pooled["saliency"] is None
        return
    np.testing.assert_array_equal(pooled["indices"], indices)
    if case["pool"] not in SALIENCY_POOLS:
        assert pooled["saliency"] is None
    else:
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
@pytest.mark.parametrize("pool", NAMES)
def test_gradients_are_finite_and_stay_off_masked_tokens(pool, dtype):
    mask = jnp.array([ALL, LEFT, RIGHT, INSIDE, [False] * T, [True] + [False] * 6])
    # Equal tokens: the maximum is a tie everywhere, and all are equally similar.
    tokens = jnp.ones((6, T, D), dtype)
    saliency = jnp.full((6, T), 0.25)

    def loss(tokens, saliency):
        pooled = POOL_FUNCTIONS[pool](tokens, mask, saliency, None, spec(pool, 3))
        assert pooled.tokens.dtype == dtype
        return (pooled.tokens.astype(jnp.float32) ** 2).sum()

    grads, by_saliency = jax.grad(loss, argnums=(0, 1))(tokens, saliency)
    grads = np.asarray(grads, np.float32)
    assert np.isfinite(grads).all()
    assert np.isfinite(by_saliency).all()
    # Only a weighted mean moves with the weights; a choice does not.
    assert by_saliency.any() == (pool == "attn_avg")
    assert not grads[~np.asarray(mask)].any()
    assert (np.abs(grads).sum(axis=(1, 2)) > 0).tolist() == [*[True] * 4, False, True]


@pytest.mark.parametrize("pool", NAMES)
def test_pools_do_not_mind_jit_vmap_and_their_neighbours(pool, rng):
    tokens = jnp.asarray(rng.normal(size=(2, 3, T, D)), jnp.float32)
    mask = jnp.array([[ALL, LEFT, RIGHT], [INSIDE, [False] * T, ALL]])
    saliency = jnp.asarray(rng.random((2, 3, T)), jnp.float32)

    def run(tokens, mask, saliency):
        return POOL_FUNCTIONS[pool](tokens, mask, saliency, None, spec(pool, 2))

    mapped = jax.jit(jax.vmap(run))(tokens, mask, saliency)
    for i in range(2):
        for j in range(3):
            alone = run(tokens[i, j : j + 1], mask[i, j : j + 1], saliency[i, j : j + 1])
            for ours, its in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(ours[i, j], its[0], atol=1e-6)


# --- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", DRAWING)
def test_draws_change_with_the_key_and_not_without_one(pool, sample_keys):
    saliency = np.full(T, 0.1)
    drawn = {
        tuple(apply(pool, 2, TOKENS, ALL, saliency, sample_keys(1, seed))["indices"].tolist())
        for seed in range(20)
    }
    assert len(drawn) > 5
    # The same key draws the same, and no key at all is the same every time.
    for keys in (sample_keys(1, 3), None):
        first, second = (apply(pool, 2, TOKENS, ALL, saliency, keys) for _ in range(2))
        np.testing.assert_array_equal(first["indices"], second["indices"])


@pytest.mark.parametrize("pool", DRAWING)
@pytest.mark.parametrize("trained", [False, True])
def test_padding_moves_no_draw(pool, trained, rng, sample_keys):
    tokens, saliency = rng.normal(size=(T, D)), rng.random(T)
    keys = sample_keys(1) if trained else None
    plain = apply(pool, 2, tokens, ALL, saliency, keys)
    zeros = np.zeros((4, D))
    for order in ((zeros, tokens), (tokens, zeros), (zeros[:2], tokens, zeros[:2])):
        mask = np.concatenate([[part is tokens] * len(part) for part in order])
        weights = np.zeros(T + 4)
        weights[mask] = saliency
        padded = apply(pool, 2, np.concatenate(order), mask, weights, keys)
        np.testing.assert_array_equal(padded["tokens"][padded["mask"]], plain["tokens"])


def frequencies(pool, size, saliency, draws=4000):
    """How often each token is among those drawn."""
    t = len(saliency)
    keys = jax.vmap(jax.random.key)(jnp.arange(draws))
    pooled = POOL_FUNCTIONS[pool](
        jnp.zeros((draws, t, 1)),
        jnp.ones((draws, t), bool),
        jnp.broadcast_to(jnp.asarray(saliency, jnp.float32), (draws, t)),
        keys,
        spec(pool, size, t),
    )
    indices = np.asarray(pooled.indices)
    assert all(len(set(row)) == len(row) for row in indices.tolist())  # without replacement
    return np.bincount(indices.ravel(), minlength=t) / draws


def test_frequencies_of_draws():
    # Standard error of a share of 4000 draws is below 0.008.
    np.testing.assert_allclose(frequencies("random", 2, [0, 0, 0, 1]), [0.5] * 4, atol=0.03)
    np.testing.assert_allclose(frequencies("strided_random", 2, [0, 0, 1, 1]), [0.5] * 4, atol=0.03)
    saliency = np.array([0.5, 0.3, 0.2, 0.0])
    np.testing.assert_allclose(frequencies("attn_random", 1, saliency), saliency, atol=0.03)
    # Two without replacement, by hand: p_i + sum over j of p_j p_i / (1 - p_j).
    pairs = [
        p + sum(q * p / (1 - q) for j, q in enumerate(saliency) if j != i)
        for i, p in enumerate(saliency)
    ]
    np.testing.assert_allclose(frequencies("attn_random", 2, saliency), pairs, atol=0.03)


# --- clusters and merging ---------------------------------------------------------------------


def test_medoids_by_hand():
    # Two groups on a line. Both centres start in the left one, at 0 and 1; the second one wins the
    # right group, whose heavy member draws the centre to itself.
    tokens = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [13.0], [50.0]])
    saliency = [0.85, 0.8, 0.1, 0.3, 0.3, 0.7, 0.9]
    mask = [True] * 6 + [False]
    pooled = apply("attn_kmedoids", 2, tokens, mask, saliency)
    np.testing.assert_array_equal(pooled["indices"], [1, 5])
    np.testing.assert_array_equal(pooled["saliency"], np.float32([0.8, 0.7]))


def test_merging_by_hand():
    # Ranks 0 and 2 are matched with 1 and 3. 0 and 1 point the same way and are averaged first;
    # then the average, counting twice, and what is most like it.
    tokens = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    once = apply("merge", 3, tokens, [True] * 4)
    np.testing.assert_allclose(once["tokens"], [[2, 0], [0, 1], [1, 1]], atol=1e-6)
    twice = apply("merge", 2, tokens, [True] * 4)
    np.testing.assert_allclose(twice["tokens"], [[2, 0], [0.5, 1]], atol=1e-6)
    last = apply("merge", 1, tokens, [True] * 4)
    np.testing.assert_allclose(last["tokens"], [tokens.mean(axis=0)], atol=1e-6)
    assert once["mask"].all()
    assert twice["indices"] is None


def test_average_in_bfloat16_is_summed_in_float32():
    # The sum, 263, is 264 in bfloat16, a third of which is 88; a third of 263 rounds to 87.5.
    tokens = jnp.array([256.0, 4.0, 3.0], jnp.bfloat16)[None, :, None]
    pooled = pools.avg_pool(tokens, jnp.ones((1, 3), bool), None, None, spec("avg", 3, 3))
    assert pooled.tokens.dtype == jnp.bfloat16
    assert float(pooled.tokens[0, 0, 0]) == 87.5
