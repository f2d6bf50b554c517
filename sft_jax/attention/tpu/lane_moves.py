"""Moves tokens along the lanes of a TPU without a gather, which would spread a token over lanes.

An order-preserving move, such as "real tokens to the front", takes `log2` of the largest distance
steps: in step `k`, all tokens whose distance has bit `k` move by `2^k`, and none collide. The
    moves are
one bit per step and place, computed once and used in both directions.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from sft_jax.attention.platform import target_platform

_FROM, _TO = 1 << 29, 1 << 30  # places that real tokens are taken from, and put to


class Moves(NamedTuple):
    """A move.

    Attributes:
        bits: `[b, 1, n]`; bit `i` of a place is set if it takes the token `shifts[i]` places
            before it.
        shifts: Distance of each step in order; negative ones move to the front.
    """

    bits: Int[Array, "b 1 n"]
    shifts: tuple[int, ...]


def compaction(real: Array, target: Array) -> Moves:
    """A move towards the front.

    Args:
        real: `[b, n]` whether a token is moved.
        target: `[b, n]` its new place, in the same order and not after its old one; arbitrary for
            other tokens.
    """
    n = real.shape[1]
    place = jnp.arange(n)
    distance = jnp.where(real, place - target, 0)
    # Tokens that stay have distance 0, like places without a token, and need no step.
    bits = jnp.zeros(real.shape, jnp.int32)
    steps = range((n - 1).bit_length())
    for k in steps:
        ahead = jnp.roll(distance, -(1 << k), axis=1)
        takes = (ahead >> k) & 1 == 1
        leaves = (distance >> k) & 1 == 1
        bits |= takes.astype(jnp.int32) << k
        distance = jnp.where(takes, ahead, jnp.where(leaves, 0, distance))
    return Moves(bits[:, None], tuple(-(1 << k) for k in steps))


def append_backward_move(moves: Moves, start: Array, gap: Array, most: int) -> Moves:
    """Then also moves tokens from `start` `[b, 1]` on back by `gap` `[b, 1]`, at most `most`."""
    place, first = jnp.arange(moves.bits.shape[-1]), len(moves.shifts)
    bits, steps = moves.bits[:, 0], range(most.bit_length())
    for k in steps:
        takes = ((gap >> k) & 1 == 1) & (place - (1 << k) >= start)
        bits |= takes.astype(jnp.int32) << (first + k)
    return Moves(bits[:, None], (*moves.shifts, *(1 << k for k in steps)))


def bounded(moves: Moves, taken: Array, put: Array) -> Moves:
    """The same move, zero at places outside `put`, and outside `taken` in reverse (both `[b, n]`).

    Raises:
        ValueError: There are more steps than bits left.
    """
    if len(moves.shifts) > 29:
        raise ValueError(f"moves: given {len(moves.shifts)} steps, expected at most 29")
    ends = jnp.where(taken, _FROM, 0) | jnp.where(put, _TO, 0)
    return Moves(moves.bits | ends[:, None].astype(jnp.int32), moves.shifts)


def move(x: Float[Array, "b d n"], moves: Moves, *, back: bool = False) -> Float[Array, "b d n"]:
    """Applies a move to `x`, or undoes it (`back`); each is the gradient of the other."""
    return _move(x, moves.bits, moves.shifts, back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _move(x, bits, shifts, back):
    d = x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, -d % 8), (0, 0)))

    def spec(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0))

    moved = pl.pallas_call(
        functools.partial(_kernel, shifts=shifts, back=back),
        grid=x.shape[:1],
        in_specs=[spec(bits), spec(x)],
        out_specs=spec(x),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=2 * x.size * x.dtype.itemsize + bits.size * bits.dtype.itemsize,
        ),
        interpret=target_platform() != "tpu",
    )(bits, x)
    return moved[:, :d]


def _move_forward(x, bits, shifts, back):
    return _move(x, bits, shifts, back), bits


def _move_backward(shifts, back, bits, d_moved):
    return _move(d_moved, bits, shifts, not back), None


_move.defvjp(_move_forward, _move_backward)


def _kernel(bits, x, moved, *, shifts, back):
    n = x.shape[2]
    places, found = bits[0], x[0].astype(jnp.float32)
    steps = list(enumerate(shifts))
    if back:
        found = _where(places & _TO, found, 0.0)
    for i, shift in reversed(steps) if back else steps:
        takes = places & (1 << i)
        if back:
            # A place returns the token it took.
            shift = -shift
            takes = pltpu.roll(takes, shift % n, 1)
        found = _where(takes, pltpu.roll(found, shift % n, 1), found)
    found = _where(places & (_FROM if back else _TO), found, 0.0)
    moved[0] = found.astype(moved.dtype)


def _where(bit, x, y):
    return jnp.where(jnp.broadcast_to(bit, x.shape) != 0, x, y)
