"""Pools (arXiv 2111.11992, section 3.2), which reduce the `t` tokens of a modality to a few.

Every pool is a pure function `(tokens, mask, saliency, keys, spec) -> Pooled` of a batch. A pool
that
selects has three steps: a score per token, a choice of indices, a gather. Masked tokens never win
    over
real ones. The result has its own mask, and slots without a real token are zero and masked. Windows
and random draws follow the order of the real tokens, so padding changes nothing.

Random pools take one key per sample in training. Without keys they use the same fixed key for every
sample, so that evaluation is deterministic.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.config.modality import ModalitySpec
from sft_jax.models.clustering import choose_medoids, merge_to
from sft_jax.models.layers import Keys
from sft_jax.types import Leaf

Tokens = Float[Array, "b t d"]
Mask = Bool[Array, "b t"]
Score = Float[Array, "b t"]
Chosen = Int[Array, "b k"]


@flax.struct.dataclass
class Pooled:
    """Tokens that a modality passes to fusion.

    Attributes:
        tokens: `[b, k, d]`, zero where masked.
        mask: `[b, k]`, true for slots with a real token.
        indices: `[b, k]` index of the token (without CLS) in each slot, -1 in empty slots; None for
            pools that mix tokens.
        saliency: `[b, k]` score of these tokens, 0 in empty slots; None for pools that mix tokens
            or do not compute it.
    """

    tokens: Leaf
    mask: Leaf
    indices: Leaf | None = None
    saliency: Leaf | None = None


# --- score


def saliency_weights(mask: Mask) -> Float[Array, "b t+1"]:
    """Weights of the queries in the saliency: equal for real tokens, 0 for CLS."""
    weights = mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return jnp.pad(weights.astype(jnp.float32), ((0, 0), (1, 0)))


def uniform(mask: Mask, keys: Keys | None) -> Score:
    """Uniform noise in (0, 1); the `r`-th real token of a sample gets its key's `r`-th draw."""
    if keys is None:
        keys = jnp.broadcast_to(jax.random.key(0), mask.shape[:1])
    tiny = jnp.finfo(jnp.float32).tiny
    draw = jax.vmap(lambda key: jax.random.uniform(key, mask.shape[1:], jnp.float32, minval=tiny))
    rank = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return jnp.take_along_axis(draw(keys), rank, axis=1)


def gumbel(score: Score, mask: Mask, keys: Keys | None) -> Score:
    """`log score` plus Gumbel noise (arXiv 1903.06059).

    Its top `k` are `k` draws in proportion to `score`, without replacement.
    """
    noise = -jnp.log(-jnp.log(uniform(mask, keys)))
    return jnp.log(jnp.maximum(score, jnp.finfo(jnp.float32).tiny)) + noise


# --- choose


def choose_top(score: Score, mask: Mask, k: int) -> Chosen:
    """Indices of the `k` highest scores, descending; real tokens first, ties by lowest index.

    The choice has no gradient.
    """
    score = jax.lax.stop_gradient(score)
    return jax.lax.top_k(jnp.where(mask, score, -jnp.inf), k)[1]


def choose_in_windows(score: Score, mask: Mask, window: int) -> tuple[Chosen, Bool[Array, "b k"]]:
    """Index of the highest score in every window, and whether the window has a real token."""
    order, real = _windows(mask, window)
    scores = jnp.take_along_axis(score, order, axis=1).reshape(real.shape)
    best = jnp.where(real, scores, -jnp.inf).argmax(axis=2)
    position = jnp.arange(real.shape[1]) * window + best
    return jnp.take_along_axis(order, position, axis=1), real.any(axis=2)


# --- gather


def gather(tokens: Tokens, mask: Mask, indices: Chosen, score: Score | None = None) -> Pooled:
    """Gathers the chosen tokens in the order of `indices`."""
    picked = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    return as_pooled(picked, mask, indices, score)


def as_pooled(
    picked: Float[Array, "b k d"], mask: Mask, indices: Chosen, score: Score | None
) -> Pooled:
    """Wraps tokens that are already in the order of `indices`, with their mask and scores."""
    chosen = jnp.take_along_axis(mask, indices, axis=1)
    saliency = None
    if score is not None:
        saliency = jnp.where(chosen, jnp.take_along_axis(score, indices, axis=1), 0)
    return Pooled(
        tokens=jnp.where(chosen[..., None], picked, 0),
        mask=chosen,
        indices=jnp.where(chosen, indices, -1),
        saliency=saliency,
    )


def to_windows(
    tokens: Tokens, mask: Mask, window: int
) -> tuple[Float[Array, "b k window d"], Bool[Array, "b k window"]]:
    """Windows over the real tokens in order, without padding, and which entries are real.

    `n` real tokens fill `max(1, n // window)` windows; a shorter tail is dropped, as without
    padding. So padding moves no token to another window.
    """
    order, real = _windows(mask, window)
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    return tokens.reshape(*real.shape, -1), real


def _windows(mask, window):
    k = mask.shape[1] // window
    count = mask.sum(axis=1)
    # A stable sort puts real tokens first and keeps their order.
    order = jnp.argsort(~mask, axis=1, stable=True)[:, : k * window]
    filled = jnp.maximum(count // window, 1) * window
    real = jnp.arange(k * window) < jnp.minimum(count, filled)[:, None]
    return order, real.reshape(-1, k, window)


# --- pools that select


def attn_topk(
    tokens: Tokens, mask: Mask, saliency: Score, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Keeps the `k` tokens of highest saliency, most salient first."""
    return gather(tokens, mask, choose_top(saliency, mask, spec.count), saliency)


def attn_kmedoids(
    tokens: Tokens, mask: Mask, saliency: Score, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Keeps the medoids of `k` clusters initialised at the most salient tokens."""
    if spec.count >= tokens.shape[1]:
        return keep_all(tokens, mask, saliency, keys, spec)
    start = choose_top(saliency, mask, spec.count)
    return gather(tokens, mask, choose_medoids(tokens, mask, saliency, start), saliency)


def attn_random(
    tokens: Tokens, mask: Mask, saliency: Score, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Draws `k` tokens in proportion to their saliency, without replacement."""
    indices = choose_top(gumbel(saliency, mask, keys), mask, spec.count)
    return gather(tokens, mask, indices, saliency)


def random_k(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Draws `k` tokens uniformly, without replacement."""
    return gather(tokens, mask, choose_top(uniform(mask, keys), mask, spec.count))


def strided_random(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Draws one token uniformly from every window."""
    indices, real = choose_in_windows(uniform(mask, keys), mask, spec.stride)
    picked = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    return Pooled(
        tokens=jnp.where(real[..., None], picked, 0),
        mask=real,
        indices=jnp.where(real, indices, -1),
    )


# --- pools that select before attention is computed: indices, and scores to report or None


def cls_topk(
    tokens: Tokens, mask: Mask, cls_attention: Score, spec: ModalitySpec
) -> tuple[Chosen, Score | None]:
    """Keeps the `k` tokens that CLS attends to most, in descending order."""
    return choose_top(cls_attention, mask, spec.count), cls_attention


def norm_topk(
    tokens: Tokens, mask: Mask, cls_attention: Score, spec: ModalitySpec
) -> tuple[Chosen, Score | None]:
    """Keeps the `k` tokens of largest norm before the block's layer norm, in descending order."""
    score = jnp.square(tokens.astype(jnp.float32)).sum(axis=-1)  # [b, t]
    return choose_top(score, mask, spec.count), None


# --- pools that mix


def max_pool(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Maximum of each channel over every window."""
    return max_windows(tokens, mask, spec.stride)


def max_windows(tokens: Tokens, mask: Mask, window: int) -> Pooled:
    """Maximum of each channel over every window of `window` real tokens."""
    windows, real = to_windows(tokens, mask, window)
    lowest = jnp.finfo(tokens.dtype).min
    return _windowed(jnp.where(real[..., None], windows, lowest).max(axis=2), real)


def avg_pool(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Mean of each channel over the real tokens of every window."""
    windows, real = to_windows(tokens, mask, spec.stride)
    total = jnp.where(real[..., None], windows, 0).sum(axis=2, dtype=jnp.float32)
    count = jnp.maximum(real.sum(axis=2), 1)[..., None]
    return _windowed((total / count).astype(tokens.dtype), real)


def attn_avg(
    tokens: Tokens, mask: Mask, saliency: Score, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Saliency-weighted mean over every window: `avg(x s) / (avg(s) + 1e-5)`."""
    windows, real = to_windows(tokens, mask, spec.stride)
    score = to_windows(saliency[..., None], mask, spec.stride)[0]  # [b, k, window, 1]
    score = jnp.where(real[..., None], score, 0)
    total = jnp.sum(jnp.where(real[..., None], windows, 0) * score, axis=2)
    count = jnp.maximum(real.sum(axis=2), 1)[..., None]
    pooled = (total / count) / (score.sum(axis=2) / count + 1e-5)
    return _windowed(pooled.astype(tokens.dtype), real)


def channel_topk(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """The `k` largest values of each channel over time, descending."""
    values = jnp.where(mask[..., None], tokens, -jnp.inf).swapaxes(1, 2)  # [b, d, t]
    largest = jax.lax.top_k(values, spec.count)[0].swapaxes(1, 2)
    real = jnp.arange(spec.count) < mask.sum(axis=1, keepdims=True)
    return Pooled(tokens=jnp.where(real[..., None], largest, 0), mask=real)


def merge(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Averages similar tokens until `k` are left (see `merge_to`)."""
    return Pooled(*merge_to(tokens, mask, spec.count))


def keep_all(
    tokens: Tokens, mask: Mask, saliency: Score | None, keys: Keys | None, spec: ModalitySpec
) -> Pooled:
    """Keeps every token: dense fusion, the baseline for savings."""
    return Pooled(tokens=jnp.where(mask[..., None], tokens, 0), mask=mask)


def _windowed(pooled, real):
    mask = real.any(axis=2)
    return Pooled(tokens=jnp.where(mask[..., None], pooled, 0), mask=mask)


# The pools of `config.modality.POOLS` that select queries, and all others.
QUERY_SELECTIONS: dict[str, Callable[..., tuple[Chosen, Score | None]]] = {
    "cls_topk": cls_topk,
    "norm_topk": norm_topk,
}
POOL_FUNCTIONS: dict[str, Callable[..., Pooled]] = {
    "attn_topk": attn_topk,
    "attn_kmedoids": attn_kmedoids,
    "attn_random": attn_random,
    "random": random_k,
    "channel_topk": channel_topk,
    "merge": merge,
    "max": max_pool,
    "avg": avg_pool,
    "attn_avg": attn_avg,
    "strided_random": strided_random,
    "none": keep_all,
}
