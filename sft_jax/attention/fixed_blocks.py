"""Where tokens lie when a sequence is cut into blocks whose last slots are their summary.

Slots follow each other block after block, `stride` to a block, and hold the real tokens (without
CLS) in their order. The one block that is not full begins with its empty slots, so that the
summaries, the last `summary` tokens of every block, have the same places in all samples.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from sft_jax.types import ConfigError


class Pattern(NamedTuple):
    """How a block is cut."""

    stride: int
    summary: int  # the last tokens of a block, which everything attends to

    @property
    def local(self) -> int:
        """The first tokens of a block, which only the block attends to."""
        return self.stride - self.summary


def keys_of_token(t: int, stride: int, expressivity: int) -> int:
    """Keys in a token's row of the map over `t` tokens and CLS; empty slots count.

    A `t` below 1 leaves CLS alone.
    """
    pattern = make_pattern(stride, expressivity)
    return math.ceil(t / stride) * pattern.summary + 1 + (pattern.local if t > 0 else 0)


class Slots(NamedTuple):
    """Where the tokens lie; the last three are None where every token is real."""

    real: Array  # [b, slots] whether there is a token in the slot
    source: Array | None  # [b, slots] its position in the sequence; 0, CLS, where there is none
    slot: Array | None  # [b, t] slot of each token; any, where it is masked
    mask: Array | None  # [b, t+1] which tokens are real; CLS always is


def make_pattern(stride: int, expressivity: int) -> Pattern:
    """The pattern with at most a whole block as its summary."""
    for name, given in (("stride", stride), ("expressivity", expressivity)):
        if given < 1:
            raise ConfigError(f"attention.{name}: given {given}, expected at least 1")
    return Pattern(stride, min(stride, expressivity))


def lay_out(mask, b, t: int, pattern: Pattern) -> Slots:
    """Slots of `b` samples of `t` tokens with the mask `[b, t+1]`, or None where all are real.

    `b` may be symbolic, as in a program for any batch size.
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
    # Stable, so that real tokens come first and keep their order.
    order = jnp.argsort(~tokens, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, size - t)))
    rank = jnp.clip(jnp.where(position < start, position, position - gap), 0, max(t - 1, 0))
    source = jnp.where(real, 1 + jnp.take_along_axis(order, rank, axis=1), 0)
    rank = jnp.cumsum(tokens, axis=1) - 1
    slot = jnp.clip(jnp.where(rank < start, rank, rank + gap), 0, max(size - 1, 0))
    return Slots(real, source, slot, mask)


def ragged(count, stride: int):
    """First slot of the last block, and how many of its slots are empty, for `count` tokens."""
    start = (count - (count > 0)) // stride * stride
    return start, start + stride - count


def slot_of(token, t: int, pattern: Pattern):
    """Slot of a token, counted from 0, where all `t` of them are real."""
    start, gap = ragged(t, pattern.stride)
    return jnp.where(token < start, token, token + gap)


def arrange(x, slots: Slots, pattern: Pattern):
    """`[t+1, ...] -> [slots, ...]` of one sample; an empty slot gets CLS."""
    if slots.source is not None:
        return jnp.take(x, slots.source, axis=0, mode="clip")
    start, gap = ragged(len(x) - 1, pattern.stride)
    if not gap:
        return x[1:]
    return jnp.concatenate([x[1 : start + 1], jnp.repeat(x[:1], gap, axis=0), x[start + 1 :]])


def restore(x, slots: Slots, t: int, pattern: Pattern):
    """`[slots, ...] -> [t, ...]` of one sample; zero where a token is masked."""
    if slots.slot is not None and slots.mask is not None:
        x = jnp.take(x, slots.slot, axis=0, mode="clip")
        return jnp.where(slots.mask[1:].reshape(-1, *[1] * (x.ndim - 1)), x, 0)
    start, gap = ragged(t, pattern.stride)
    return jnp.concatenate([x[:start], x[start + gap :]]) if gap else x


def cut(x, pattern: Pattern):
    """`[slots, ...] -> [blocks, stride, ...]`."""
    return x.reshape(-1, pattern.stride, *x.shape[1:])


def merge(x):
    """The reverse of `cut`, for blocks of any size."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def split(x, cls, pattern: Pattern):
    """Slots to what all blocks share and what only a block itself is given, CLS in front.

    Args:
        x: `[slots, ...]`.
        cls: `[1, ...]`.
        pattern: how many of a block's slots are shared.

    Returns:
        `[blocks * summary, ...]` and `[blocks, 1 + local, ...]`. CLS, which is shared too, is among
        the local ones, since a CPU is quicker with an even number of shared keys.
    """
    x = cut(x, pattern)
    cls = jnp.broadcast_to(cls, (len(x), *cls.shape))
    return merge(x[:, pattern.local :]), jnp.concatenate([cls, x[:, : pattern.local]], axis=1)


def join(shared, local, pattern: Pattern):
    """From the sums of `split`'s parts to those of slots `[slots, ...]` and CLS `[1, ...]`."""
    summaries = shared.reshape(len(local), pattern.summary, *shared.shape[1:])
    slots = merge(jnp.concatenate([local[:, 1:], summaries], axis=1))
    return slots, local[:, 0].sum(axis=0, keepdims=True)
