"""The fixed pattern of `sparse_attention.py` through the TPU's kernels.

CLS and the summaries are the far keys, and the slots of a query's own block the near ones. Blocks
are laid out so that a tile of lanes holds whole ones. CLS as a query, which attends to everything,
is one row of dense attention.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sft_jax.models import tpu_kernels
from sft_jax.models.platform import target_platform
from sft_jax.models.sparse_slots import Pattern, lay_out
from sft_jax.models.tpu_attention import attend, pad_to, round_up
from sft_jax.models.tpu_kernels import LANES, MASKED, Keys, Tiling

_FROM = 128  # tokens


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

    def from_summaries(self, x):
        """Where `summaries` came from, zero in the other slots; what lies behind is left out."""
        x = x[:, : self.blocks * self.pattern.summary]
        x = x.reshape(x.shape[0], self.blocks, self.pattern.summary)
        return jnp.pad(x, ((0, 0), (0, 0), (self.pattern.local, 0))).reshape(x.shape[0], -1)

    def is_summary(self):
        """`[slots]`."""
        position = jnp.arange(self.blocks * self.pattern.stride)
        return position % self.pattern.stride >= self.pattern.local


def kernel_takes(t: int, pattern: Pattern) -> bool:
    """Whether the kernels are meant for `t` tokens: on a TPU, unless few, or too many to fit."""
    grid = _Grid.of(t, pattern)
    fits = tpu_kernels.fits(grid.far + grid.rows, grid.rows)
    return target_platform() == "tpu" and t >= _FROM and fits


def kernel_fixed_attention(
    x: Float[Array, "b n d"],
    project: Callable[[jax.Array, slice], jax.Array],
    finish: Callable[[jax.Array], jax.Array],
    *,
    key_mask: Bool[Array, "b n"] | None,
    query_weights: Float[Array, "b n"] | None,
    pattern: Pattern,
) -> tuple[Float[Array, "b n out"], Float[Array, "b n"] | None]:
    """Self-attention over the fixed pattern, from tokens to tokens.

    Tokens are put into slots before they are projected and back after the heads are joined, since
    a row of `d` moves fewer bytes than those of all query, key and value heads.

    Args:
        x: tokens, one at least behind CLS.
        project: from tokens `[b, m, d]` to the slice's parts of query, key and value,
            `[parts, b, h, e, m]`.
        finish: from values `[b, h, e, m]` to what is returned of the tokens, `[b, m, out]`.
        key_mask: as in `sparse_attention.fixed_attention`.
        query_weights: likewise.
        pattern: which keys a token attends to.

    Returns:
        The tokens, zero where masked, and the saliency where asked for.
    """
    b, n, _ = x.shape
    grid = _Grid.of(n - 1, pattern)
    mask = jnp.ones((b, n), bool) if key_mask is None else key_mask
    slots = lay_out(mask, b, n - 1, pattern)
    forth, back = (slots.source - 1, slots.real), (slots.slot, slots.mask[:, 1:])
    in_slots = _permute(x[:, 1:], *forth, *back)
    far_x = jnp.concatenate([x[:, :1], grid.summaries(in_slots)], axis=1)
    query, *near = project(grid.lanes(in_slots), slice(0, 3))
    far = project(pad_to(far_x, grid.far, axis=1), slice(1, 3))
    scale, e = query.shape[2] ** -0.5, query.shape[2]
    far_real = jnp.pad(grid.summaries(slots.real), ((0, 0), (1, 0)), constant_values=True)
    near_real = grid.lanes(slots.real)
    shared = grid.lanes(jnp.broadcast_to(grid.is_summary(), slots.real.shape))
    far = _keys(far, pad_to(far_real, grid.far, axis=1))
    near = _keys(near, near_real & ~shared)
    weights = None
    if query_weights is not None:
        query_weights = jax.lax.stop_gradient(query_weights) * slots.mask / query.shape[1]
        weights = grid.lanes(_permute(query_weights[:, 1:], *forth, *back))[:, None]
    values, *saliency = attend(
        _pad_width(query * scale), far, near, weights, Tiling(grid.rows, pattern.stride)
    )
    cls_query = _pad_width(project(x[:, :1], slice(0, 1))[0] * scale)
    cls_values, cls_map = _cls_row(cls_query, far, near, near_real)
    tokens = _permute(grid.slots(finish(values[:, :, :e])), *back, *forth)
    tokens = jnp.concatenate([finish(cls_values[:, :, :e]), tokens], axis=1)
    if query_weights is None:
        return tokens, None
    by_far, by_near = (part[:, 0] for part in saliency)
    cls_map = cls_map.sum(axis=1) * query_weights[:, :1]
    by_slot = grid.slots(by_near + cls_map[:, 1:]) + grid.from_summaries(by_far[:, 1:])
    of_cls = by_far[:, :1] + cls_map[:, :1]
    return tokens, jnp.concatenate([of_cls, _permute(by_slot, *back, *forth)], axis=1)


def _keys(keys_values, real) -> Keys:
    key, value = (_pad_width(x) for x in keys_values)
    return Keys(key, value, jnp.where(real, 0.0, MASKED)[:, None])


def _pad_width(x):  # [b, h, e, n], `e` to a multiple of 8
    return pad_to(x, round_up(x.shape[2], 8), axis=2)


def _cls_row(query, far, near, real):
    """Values `[b, h, e, 1]` of CLS, the first of the far keys, and its row `[b, h, 1 + lanes]`."""
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    own = product("bheq,bhen->bhn", query, far.key[..., :1])
    rest = product("bheq,bhen->bhn", query, near.key)
    scores = jnp.concatenate([own, jnp.where(real[:, None], rest, MASKED)], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    rounded = weights.astype(query.dtype)
    values = product("bhn,bhen->bhe", rounded[..., :1], far.value[..., :1])
    values += product("bhn,bhen->bhe", rounded[..., 1:], near.value)
    return values.astype(query.dtype)[..., None], weights


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
