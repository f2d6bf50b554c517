"""Clustering of tokens for pools: weighted k-medoids and bipartite merging.

Both are batched and have static shapes, with all samples and clusters in one array program.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_ROUNDS = 5
# Choices depend on small differences, so sums must be exact on every device.
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def choose_medoids(
    tokens: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    score: Float[Array, "b t"],
    start: Int[Array, "b k"],
) -> Int[Array, "b k"]:
    """Five rounds of weighted k-medoids under the L1 distance (arXiv 2111.11992, section 3.2).

    Each round assigns every token to its nearest centre (ties: lowest centre). The new centre of a
    cluster is its member `i` with the smallest `sum_j |x_i - x_j|_1 s_j` over members `j` (ties:
    lowest index). A cluster without members keeps its centre, so identical tokens may be chosen
    twice.

    Args:
        tokens: Tokens to cluster.
        mask: True for real tokens; others belong to no cluster.
        score: Weight `s_j` of each token.
        start: Indices of the initial centres; masked ones attract nothing and stay.

    Returns:
        Indices of the centres, in the order of `start`.
    """
    tokens = jax.lax.stop_gradient(tokens).astype(jnp.float32)
    # [b, t, t], written once, since XLA fuses the sum over d.
    distance = jnp.abs(tokens[:, :, None] - tokens[:, None]).sum(axis=-1)
    weighted = distance * (jax.lax.stop_gradient(score) * mask)[:, None, :]
    real_centre = jnp.take_along_axis(mask, start, axis=1)

    def one_round(_, centres):
        # [b, t, k] distance of every token from every centre
        to_centres = jnp.take_along_axis(distance, centres[:, None, :], axis=2)
        nearest = jnp.where(real_centre[:, None], to_centres, jnp.inf).argmin(axis=2)
        member = (nearest[..., None] == jnp.arange(start.shape[1])) & mask[..., None]
        cost = _product("bij,bjk->bik", weighted, member.astype(jnp.float32))
        best = jnp.where(member, cost, jnp.inf).argmin(axis=1).astype(start.dtype)
        return jnp.where(member.any(axis=1), best, centres)

    return jax.lax.fori_loop(0, _ROUNDS, one_round, start)


def merge_to(
    tokens: Float[Array, "b t d"], mask: Bool[Array, "b t"], k: int
) -> tuple[Float[Array, "b k d"], Bool[Array, "b k"]]:
    """Merges similar real tokens until at most `k` are left (the idea of arXiv 2210.09461).

    Each round divides the tokens by even and odd rank, finds the odd token of highest cosine
    similarity
    for every even one, and averages the most similar pairs: as many as needed to reach `k`, at
        most half
    of the tokens. Merged tokens are weighted by the number of tokens they stand for. The number of
    merges depends on the real tokens of each sample, so padding changes nothing. Real tokens keep
    their order, and a sample with at most `k` of them keeps them all.

    Args:
        tokens: Tokens to merge.
        mask: True for real tokens.
        k: Number of tokens to keep, at most `t`.
    """
    order = jnp.argsort(~mask, axis=1, stable=True)
    dtype = tokens.dtype
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1).astype(jnp.float32)
    count = mask.sum(axis=1)
    sizes = (jnp.arange(tokens.shape[1]) < count[:, None]).astype(jnp.float32)
    while tokens.shape[1] > k:
        length = max(k, -(-tokens.shape[1] // 2))
        tokens, sizes, count = _merge_round(tokens, sizes, count, k, length)
    real = sizes > 0
    return jnp.where(real[..., None], tokens, 0).astype(dtype), real


def _merge_round(tokens, sizes, count, k, length):
    """One round on tokens whose first `count` are real; returns `length` slots."""
    b, t, _ = tokens.shape
    merges = jnp.clip(count - k, 0, count // 2)  # [b]
    target, score = _match(tokens, count)
    # Rank of every even token by similarity, most similar first.
    rank = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1, stable=True)
    merged = rank < merges[:, None]  # [b, even]
    moves = jax.nn.one_hot(target, t // 2, dtype=jnp.float32) * merged[..., None]  # [b, even, odd]
    even_size, odd_size = sizes[:, 0::2], sizes[:, 1::2]
    new_size = odd_size + _product("beo,be->bo", moves, even_size)
    total = odd_size[..., None] * tokens[:, 1::2]
    total += _product("beo,be,bed->bod", moves, even_size, tokens[:, 0::2])
    odd = total / jnp.maximum(new_size, 1)[..., None]
    tokens, sizes = tokens.at[:, 1::2].set(odd), sizes.at[:, 1::2].set(new_size)
    gone = jnp.zeros((b, t), bool).at[:, 0::2].set(merged)
    sizes = jnp.where(gone, 0, sizes)
    order = jnp.argsort(sizes == 0, axis=1, stable=True)[:, :length]
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    return tokens, jnp.take_along_axis(sizes, order, axis=1), count - merges


def _match(tokens, count):
    """Most similar odd token of each even one `[b, even]`, and the similarity (-inf if masked)."""
    tokens = jax.lax.stop_gradient(tokens)
    norm = jnp.sqrt(jnp.sum(tokens**2, axis=-1, keepdims=True))
    units = tokens / jnp.maximum(norm, 1e-12)
    similarity = _product("bed,bod->beo", units[:, 0::2], units[:, 1::2])
    ranks = jnp.arange(tokens.shape[1]) < count[:, None]
    similarity = jnp.where(ranks[:, None, 1::2], similarity, -jnp.inf)
    score = jnp.where(ranks[:, 0::2], similarity.max(axis=2), -jnp.inf)
    return similarity.argmax(axis=2), score
