"""Layout of a sequence in blocks of slots, the last of which are a block's summary.

Slots are numbered block after block, `stride` per block, and hold the real tokens (without CLS) in
order. The block that is not full starts with its empty slots, so that the summaries, the last
`summary` tokens of every block, are in the same slots in all samples.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from sft_jax.types import ConfigError


class Pattern(NamedTuple):
    """Sizes of a block and its summary."""

    stride: int
    summary: int  # last tokens of a block, which all tokens attend to

    @property
    def local(self) -> int:
        """First tokens of a block, which only the block attends to."""
        return self.stride - self.summary


def keys_of_token(t: int, stride: int, expressivity: int) -> int:
    """Number of keys of a token among `t` tokens and CLS, empty slots included.

    With `t` below 1 only CLS is left.
    """
    pattern = make_pattern(stride, expressivity)
    return math.ceil(t / stride) * pattern.summary + 1 + (pattern.local if t > 0 else 0)


class Slots(NamedTuple):
    """Slots of the tokens; the last three are None if every token is real."""

    real: Array  # [b, slots] whether a slot holds a token
    source: Array | None  # [b, slots] position of its token in the sequence; 0 (CLS) if empty
    slot: Array | None  # [b, t] slot of each token; arbitrary for masked ones
    mask: Array | None  # [b, t+1] whether a token is real; CLS always is


def make_pattern(stride: int, expressivity: int) -> Pattern:
    """Builds the pattern, with at most a whole block as summary."""
    for name, given in (("stride", stride), ("expressivity", expressivity)):
        if given < 1:
            raise ConfigError(f"attention.{name}: given {given}, expected at least 1")
    return Pattern(stride, min(stride, expressivity))


def make_slots(mask, b, t: int, pattern: Pattern) -> Slots:
    """Lays out `b` samples of `t` tokens with mask `[b, t+1]`, or None if all are real.

    `b` may be symbolic, as in a program exported for any batch size.
    """
    stride = pattern.stride
    size = math.ceil(t / stride) * stride
    position = jnp.arange(size)
    if mask is None:
        start, gap = ragged(t, stride)
        real = (position < start) | (position >= start + gap)
        return Slots(jnp.broadcast_to(real, (b, size)), None, None, None)
    mask = mask.at[:, 0].set(True)
    tokens = mask[:, 1:]
    count = tokens.sum(axis=1, keepdims=True)
    start, gap = ragged(count, stride)
    real = (position < start) | ((position >= start + gap) & (position < start + stride))
    # A stable sort puts real tokens first and keeps their order.
    order = jnp.argsort(~tokens, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, size - t)))
    rank = jnp.clip(jnp.where(position < start, position, position - gap), 0, max(t - 1, 0))
    source = jnp.where(real, 1 + jnp.take_along_axis(order, rank, axis=1), 0)
    rank = jnp.cumsum(tokens, axis=1) - 1
    slot = jnp.clip(jnp.where(rank < start, rank, rank + gap), 0, max(size - 1, 0))
    return Slots(real, source, slot, mask)


def ragged(count, stride: int):
    """First slot of the last block and its number of empty slots, for `count` tokens."""
    start = (count - (count > 0)) // stride * stride
    return start, start + stride - count


def slot_of(token, t: int, pattern: Pattern):
    """Slot of a token (counted from 0) if all `t` tokens are real."""
    start, gap = ragged(t, pattern.stride)
    return jnp.where(token < start, token, token + gap)


def arrange(x, slots: Slots, pattern: Pattern):
    """Gathers `[t+1, ...]` into `[slots, ...]` for one sample; empty slots get CLS."""
    if slots.source is not None:
        return jnp.take(x, slots.source, axis=0, mode="clip")
    start, gap = ragged(len(x) - 1, pattern.stride)
    if not gap:
        return x[1:]
    return jnp.concatenate([x[1 : start + 1], jnp.repeat(x[:1], gap, axis=0), x[start + 1 :]])


def restore(x, slots: Slots, t: int, pattern: Pattern):
    """Gathers `[slots, ...]` into `[t, ...]` for one sample, zero for masked tokens."""
    if slots.slot is not None and slots.mask is not None:
        x = jnp.take(x, slots.slot, axis=0, mode="clip")
        return jnp.where(slots.mask[1:].reshape(-1, *[1] * (x.ndim - 1)), x, 0)
    start, gap = ragged(t, pattern.stride)
    return jnp.concatenate([x[:start], x[start + gap :]]) if gap else x


def cut(x, pattern: Pattern):
    """Reshapes `[slots, ...]` to `[blocks, stride, ...]`."""
    return x.reshape(-1, pattern.stride, *x.shape[1:])


def merge(x):
    """Inverse of `cut`, for blocks of any size."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def split(x, cls, pattern: Pattern):
    """Splits slots into those shared by all blocks and those local to a block, CLS first.

    Args:
        x: `[slots, ...]`.
        cls: `[1, ...]`.
        pattern: Sizes of blocks and summaries.

    Returns:
        `[blocks * summary, ...]` and `[blocks, 1 + local, ...]`. CLS is shared too, but listed
        with the local slots, since a CPU is faster with an even number of shared keys.
    """
    x = cut(x, pattern)
    cls = jnp.broadcast_to(cls, (len(x), *cls.shape))
    return merge(x[:, pattern.local :]), jnp.concatenate([cls, x[:, : pattern.local]], axis=1)


def join(shared, local, pattern: Pattern):
    """Joins sums over `split`'s parts into those of slots `[slots, ...]` and CLS `[1, ...]`."""
    summaries = shared.reshape(len(local), pattern.summary, *shared.shape[1:])
    slots = merge(jnp.concatenate([local[:, 1:], summaries], axis=1))
    return slots, local[:, 0].sum(axis=0, keepdims=True)
