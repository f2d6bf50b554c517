"""Fixed-pattern attention (`fixed.py`) in TPU kernels.

The summaries and CLS are the far keys, and the slots of a query's own block the near keys; a tile
of lanes holds whole blocks. CLS as a query attends to everything and is one row of dense
attention.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sft_jax.attention.fixed_blocks import Pattern, ragged
from sft_jax.attention.platform import target_platform
from sft_jax.attention.tiled_softmax import MASKED_SCORE
from sft_jax.attention.tpu import tpu_kernels
from sft_jax.attention.tpu.lane_moves import Moves, append_backward_move, bounded, compaction, move
from sft_jax.attention.tpu.tpu_dense import attend, pad_to, round_up
from sft_jax.attention.tpu.tpu_kernels import LANES, Keys, Tiling


class _Layout(NamedTuple):
    """Lanes of a sequence's tokens: in order, in slots, and summaries only."""

    length: int  # of the sequence
    size: int  # lanes of a sequence and of its slots
    rows: int  # lanes of a tile, in whole blocks
    # Summaries, followed by CLS. Hides tuple.count, which is not used.
    count: int  # type: ignore[assignment]
    far: int  # lanes of the summaries and CLS
    slots: Array  # [b, size] whether a slot holds a token
    summaries: Array  # [b, size] whether a slot is in a summary
    to_slots: Moves
    to_far: Moves

    @classmethod
    def of(cls, mask, pattern: Pattern) -> "_Layout":
        """Layout for a mask `[b, n]` whose first token is CLS."""
        b, n = mask.shape
        stride, (rows, blocks, size) = pattern.stride, _sizes(n - 1, pattern)
        real = pad_to(mask & (jnp.arange(n) > 0), size, axis=1)
        total = real.sum(axis=1, keepdims=True)
        start, gap = ragged(total, stride)
        slot = jnp.arange(size)
        slots = (slot < start) | ((slot >= start + gap) & (slot < start + stride))
        slots &= total > 0
        # Tokens to the front, then those of the incomplete block to its end.
        to_slots = compaction(real, jnp.cumsum(real, axis=1) - 1)
        to_slots = bounded(append_backward_move(to_slots, start, gap, stride - 1), real, slots)
        block, within = slot // stride, slot % stride
        summaries = jnp.broadcast_to((within >= pattern.local) & (block < blocks), (b, size))
        count = blocks * pattern.summary
        place = block * pattern.summary + within - pattern.local
        to_far = compaction(summaries, jnp.broadcast_to(place, (b, size)))
        to_far = bounded(to_far, summaries, jnp.broadcast_to(slot < count, (b, size)))
        far = round_up(count + 1, LANES)
        return cls(n, size, rows, count, far, slots, summaries, to_slots, to_far)

    def forth(self, x):
        """Moves tokens `[b, d, length]` to slots `[b, d, size]`."""
        return move(pad_to(x, self.size, axis=2), self.to_slots)

    def back(self, in_slots, of_cls):
        """Moves slots `[b, d, size]` and CLS `[b, d, 1]` to tokens `[b, d, length]`."""
        x = move(in_slots, self.to_slots, back=True)[..., : self.length]
        return jnp.where(jnp.arange(self.length) == 0, of_cls, x)

    def far_of(self, in_slots, of_cls):
        """Selects summaries and CLS, `[b, d, far]`, from slots `[b, d, size]` and `[b, d, 1]`."""
        summaries = move(in_slots, self.to_far)[..., : self.count]
        return pad_to(jnp.concatenate([summaries, of_cls], axis=-1), self.far, axis=2)

    def summaries_to_slots(self, far):
        """Puts summaries `[b, 1, far]` back into slots `[b, 1, size]`, zero elsewhere."""
        return move(pad_to(far[..., : self.count], self.size, axis=2), self.to_far, back=True)


def _sizes(t, pattern):
    """Lanes of a tile, number of blocks, and lanes of the sequence."""
    rows = max(LANES, pattern.stride)
    blocks = math.ceil(t / pattern.stride)
    return rows, blocks, round_up(max(t + 1, blocks * pattern.stride), rows)


def kernel_takes(t: int, pattern: Pattern) -> bool:
    """Whether to use the kernels for `t` tokens: on a TPU, if tiles hold whole blocks."""
    rows, blocks, _ = _sizes(t, pattern)
    far = round_up(blocks * pattern.summary + 1, LANES)
    whole = rows % LANES == 0 and rows % pattern.stride == 0
    return target_platform() == "tpu" and t > 0 and whole and tpu_kernels.fits(far + rows, rows)


def kernel_fixed_attention(
    x: Float[Array, "b n d"],
    project: Callable[[jax.Array, slice], Sequence[jax.Array]],
    finish: Callable[[jax.Array], jax.Array],
    *,
    key_mask: Bool[Array, "b n"] | None,
    query_weights: Float[Array, "b n"] | None,
    pattern: Pattern,
) -> tuple[Float[Array, "b n out"], Float[Array, "b n"] | None]:
    """Self-attention over the fixed pattern, from tokens to tokens.

    Tokens are moved to slots before projection and back after the heads are joined, which moves
    fewer bytes than moving all query, key and value heads.

    Args:
        x: Tokens, at least one after CLS.
        project: Function from tokens `[b, d, m]` to the requested parts of query, key and value,
            each `[b, h, e, m]`.
        finish: Function from values `[b, h, e, m]` to the result of the tokens, `[b, out, m]`.
        key_mask: See `fixed.fixed_attention`.
        query_weights: See `fixed.fixed_attention`.
        pattern: Sizes of blocks and summaries; a tile of 128 lanes, or one block, holds whole
            blocks.

    Returns:
        The tokens, zero where masked, and the saliency if requested.
    """
    mask = jnp.ones(x.shape[:2], bool) if key_mask is None else key_mask
    layout = _Layout.of(mask, pattern)
    x = x.transpose(0, 2, 1)
    of_cls, in_slots = x[..., :1], layout.forth(x)
    query, *near = project(in_slots, slice(0, 3))
    far = project(layout.far_of(in_slots, of_cls), slice(1, 3))
    h, e = query.shape[1:3]
    far_real = layout.far_of(layout.slots[:, None].astype(x.dtype), jnp.ones_like(x[:, :1, :1]))
    far_keys = _keys(far, far_real[:, 0] > 0)
    near_keys = _keys(near, layout.slots & ~layout.summaries)
    weights = of_cls_weights = None
    if query_weights is not None:
        weights = jax.lax.stop_gradient(query_weights)[:, None] / h
        weights, of_cls_weights = layout.forth(weights), weights[..., :1]
    values, *saliency = attend(
        _pad_width(query * e**-0.5),
        far_keys,
        near_keys,
        weights,
        Tiling(layout.rows, pattern.stride),
    )
    cls_query = _pad_width(project(of_cls, slice(0, 1))[0] * e**-0.5)
    last = slice(layout.count, layout.count + 1)
    own = far_keys.key[..., last], far_keys.value[..., last]
    cls_values, *cls_maps = _cls_row(cls_query, own, near_keys, layout.slots)
    tokens = layout.back(finish(values[:, :, :e]), finish(cls_values[:, :, :e])).transpose(0, 2, 1)
    if weights is None or of_cls_weights is None:
        return tokens, None
    by_far, by_near = saliency
    own_map, cls_map = (x.sum(axis=1, keepdims=True) * of_cls_weights for x in cls_maps)
    by_slot = by_near + layout.summaries_to_slots(by_far) + cls_map
    by_token = layout.back(by_slot, by_far[..., last] + own_map)
    return tokens, by_token[:, 0]


def _keys(keys_values, real) -> Keys:
    key, value = (_pad_width(x) for x in keys_values)
    return Keys(key, value, jnp.where(real, 0.0, MASKED_SCORE)[:, None])


def _pad_width(x):  # [b, h, e, n], `e` padded to a multiple of 8
    return pad_to(x, round_up(x.shape[2], 8), axis=2)


def _cls_row(query, own, near, real):
    """Attention of CLS: values `[b, h, e, 1]` and its row of the map.

    The row is returned in two parts, itself `[b, h, 1]` and the slots `[b, h, slots]`; joined, they
    would need another tile.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = jnp.where(real[:, None], product("bheq,bhen->bhn", query, near.key), MASKED_SCORE)
    own_score = product("bheq,bhen->bhn", query, own[0])
    largest = jnp.maximum(own_score, scores.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)
    weights, own_weight = jnp.exp(scores - largest), jnp.exp(own_score - largest)
    total = weights.sum(axis=-1, keepdims=True) + own_weight
    values = product("bhn,bhen->bhe", weights.astype(query.dtype), near.value)
    values += own_weight * own[1][..., 0].astype(jnp.float32)
    values = (values / total).astype(query.dtype)
    return values[..., None], own_weight / total, weights / total
