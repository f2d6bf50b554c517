"""The fixed pattern of `sparse_attention.py` through the TPU's kernels.

CLS and the summaries are the far keys, and the slots of a query's own block the near ones. Blocks
are laid out so that a tile of lanes holds whole ones. CLS as a query, which attends to everything,
is one row of dense attention.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sft_jax.models import tpu_kernels
from sft_jax.models.attention import Attention, dot_product_attention
from sft_jax.models.sparse_slots import Pattern, lay_out
from sft_jax.models.tpu_attention import attend, pad_to, round_up, to_lanes
from sft_jax.models.tpu_kernels import LANES, MASKED, Keys, Tiling


class _Grid(NamedTuple):
    """How the blocks of a sequence are laid out in lanes."""

    pattern: Pattern
    blocks: int
    tiles: int
    per_tile: int  # blocks
    rows: int  # lanes of a tile

    @classmethod
    def of(cls, t: int, pattern: Pattern) -> "_Grid":
        blocks, per_tile = math.ceil(t / pattern.stride), max(1, LANES // pattern.stride)
        rows = round_up(per_tile * pattern.stride, LANES)
        return cls(pattern, blocks, math.ceil(blocks / per_tile), per_tile, rows)

    @property
    def far(self) -> int:
        """Lanes of CLS and the summaries."""
        return round_up(1 + self.blocks * self.pattern.summary, LANES)

    def lanes(self, x):
        """`[b, slots, ...] -> [b, tiles * rows, ...]`, filled up with zeros."""
        used = self.per_tile * self.pattern.stride
        x = pad_to(x, self.tiles * used, axis=1)
        x = pad_to(x.reshape(x.shape[0], self.tiles, used, *x.shape[2:]), self.rows, axis=2)
        return x.reshape(x.shape[0], self.tiles * self.rows, *x.shape[3:])

    def slots(self, x):
        """The reverse of `lanes`."""
        used = self.per_tile * self.pattern.stride
        x = x.reshape(x.shape[0], self.tiles, self.rows, *x.shape[2:])[:, :, :used]
        x = x.reshape(x.shape[0], self.tiles * used, *x.shape[3:])
        return x[:, : self.blocks * self.pattern.stride]

    def summaries(self, x):
        """`[b, slots, ...] -> [b, blocks * summary, ...]`."""
        x = x.reshape(x.shape[0], self.blocks, self.pattern.stride, *x.shape[2:])
        x = x[:, :, self.pattern.local :]
        return x.reshape(x.shape[0], self.blocks * self.pattern.summary, *x.shape[3:])

    def is_summary(self):
        """`[slots]`."""
        position = jnp.arange(self.blocks * self.pattern.stride)
        return position % self.pattern.stride >= self.pattern.local


def pattern_fits(t: int, pattern: Pattern) -> bool:
    """Whether the keys of a tile leave room on the chip."""
    grid = _Grid.of(t, pattern)
    return tpu_kernels.fits(grid.far + grid.rows, grid.rows)


def kernel_fixed_attention(query, key, value, key_mask, query_weights, pattern) -> Attention:
    """See `sparse_attention.fixed_attention`, which calls this for at least one token."""
    b, n, h, e = query.shape
    grid = _Grid.of(n - 1, pattern)
    mask = jnp.ones((b, n), bool) if key_mask is None else key_mask
    slots = lay_out(mask, b, n - 1, pattern)
    mask = slots.mask
    if query_weights is not None:
        query_weights = jax.lax.stop_gradient(query_weights) * mask
    cls = dot_product_attention(
        query[:, :1],
        key,
        value,
        key_mask=mask,
        query_weights=None if query_weights is None else query_weights[:, :1],
        implementation="xla",
    )
    forth = (slots.source - 1, slots.real)
    back = (slots.slot, mask[:, 1:])
    packed = jnp.concatenate([query * e**-0.5, key, value], axis=2)  # [b, n, 3 h, e]
    in_slots = _permute(packed[:, 1:].reshape(b, n - 1, -1), *forth, *back)
    in_slots = in_slots.reshape(b, -1, 3 * h, e)

    def far_of(of_cls, x):
        return pad_to(jnp.concatenate([of_cls, grid.summaries(x)], axis=1), grid.far, axis=1)

    far_real = far_of(jnp.ones((b, 1), bool), slots.real)
    far_packed = to_lanes(far_of(packed[:, :1, h:], in_slots[:, :, h:]), grid.far)
    far = Keys(far_packed[:, :h], far_packed[:, h:], jnp.where(far_real, 0.0, MASKED)[:, None])
    near_real = grid.lanes(slots.real & ~grid.is_summary())
    lanes = to_lanes(grid.lanes(in_slots), grid.tiles * grid.rows)
    near = Keys(lanes[:, h : 2 * h], lanes[:, 2 * h :], jnp.where(near_real, 0.0, MASKED)[:, None])
    weights = None
    if query_weights is not None:
        weights = grid.lanes(_permute(query_weights[:, 1:] / h, *forth, *back))[:, None]
    values, far_saliency, near_saliency = attend(
        lanes[:, :h], far, near, weights, Tiling(grid.rows, pattern.stride)
    )
    values = grid.slots(values[:, :, :e].transpose(0, 3, 1, 2)).reshape(b, -1, h * e)
    values = _permute(values, *back, *forth).reshape(b, n - 1, h, e)
    values = jnp.concatenate([cls.values, values], axis=1)
    if query_weights is None:
        return Attention(values, None)
    count = grid.blocks * pattern.summary
    summaries = far_saliency[:, 0, 1 : 1 + count].reshape(b, grid.blocks, pattern.summary)
    summaries = jnp.pad(summaries, ((0, 0), (0, 0), (pattern.local, 0))).reshape(b, -1)
    by_slot = grid.slots(near_saliency[:, 0]) + summaries
    by_token = _permute(by_slot, *back, *forth)
    saliency = jnp.concatenate([far_saliency[:, 0, :1], by_token], axis=1)
    return Attention(values, cls.saliency + saliency)


@jax.custom_vjp
def _permute(x, index, real, back_index, back_real):
    """Rows `[b, n, ...]` of `x` at `index` `[b, m]`, zero where not `real`.

    Every row of `x` is taken at most once: `back_index` says from which place of the result its
    gradient comes, so that this is a look-up like the result, and no sum over all of it.
    """
    return _take(x, index, real)


def _take(x, index, real):
    shape = (*index.shape, *[1] * (x.ndim - 2))
    x = jnp.take_along_axis(x, index.reshape(shape), axis=1, mode="clip")
    return jnp.where(real.reshape(shape), x, 0)


def _permute_forward(x, index, real, back_index, back_real):
    return _take(x, index, real), (back_index, back_real)


def _permute_backward(back, d_result):
    return _take(d_result, *back), None, None, None, None


_permute.defvjp(_permute_forward, _permute_backward)
