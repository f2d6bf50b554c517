"""Moving tokens along lanes, against look-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.attention.fixed_blocks import make_pattern, make_slots
from sft_jax.attention.tpu.lane_moves import Moves, append_backward_move, bounded, compaction, move
from sft_jax.attention.tpu.tpu_fixed import _Layout


def to_front(real):
    real = jnp.asarray(real, bool)
    moves = compaction(real, jnp.cumsum(real, axis=1) - 1)
    count = real.sum(axis=1, keepdims=True)
    return bounded(moves, real, jnp.arange(real.shape[1]) < count)


def test_moves_to_the_front_by_hand():
    # 3 and 7 go 1 to the front, then 2: 7 by 3 steps in all, 3 by 1, 0 nowhere.
    moves = to_front([[1, 0, 1, 0, 0, 1, 0, 0]])
    assert moves.shifts == (-1, -2, -4)
    x = jnp.array([[[10.0, 11, 12, 13, 14, 15, 16, 17]]])
    np.testing.assert_array_equal(move(x, moves), [[[10, 12, 15, 0, 0, 0, 0, 0]]])
    back = move(move(x, moves), moves, back=True)
    np.testing.assert_array_equal(back, [[[10, 0, 12, 0, 0, 15, 0, 0]]])


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_moves_and_gradient_are_those_of_a_look_up(seed, share):
    # One shape, so that one compilation serves all.
    rng = np.random.default_rng(seed)
    real = rng.random((2, 128)) < share
    x, d_moved = rng.normal(size=(2, 2, 3, 128)).astype(np.float32)
    moved, d_x = _moved(real, x, d_moved)
    expected, expected_gradient = np.zeros_like(x), np.zeros_like(x)
    for i, row in enumerate(real):
        places = np.flatnonzero(row)
        expected[i, :, : len(places)] = x[i][:, places]
        expected_gradient[i][:, places] = d_moved[i, :, : len(places)]
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(d_x, expected_gradient)


@jax.jit
def _moved(real, x, d_moved):
    moved, back = jax.vjp(lambda x: move(x, to_front(real)), x)
    return moved, back(d_moved)[0]


@pytest.mark.parametrize(("stride", "summary"), [(4, 1), (32, 8), (128, 128)])
def test_slots_are_those_of_the_other_layout(stride, summary, rng):
    n, pattern = 140, make_pattern(stride, summary)
    mask = rng.random((4, n)) < np.array([[0.0], [0.5], [0.9], [1.0]])
    mask[:, 0] = True
    x = rng.normal(size=(4, 2, n)).astype(np.float32)
    slots = make_slots(jnp.asarray(mask), 4, n - 1, pattern)
    size = slots.real.shape[1]

    @jax.jit
    def arranged(mask, x):
        layout = _Layout.of(mask, pattern)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, layout.size - n)))
        in_slots = move(x, layout.to_slots)
        return layout.slots, in_slots, layout.far_of(in_slots, x[..., :1])

    real, in_slots, far = arranged(jnp.asarray(mask), x)
    np.testing.assert_array_equal(real[:, :size], slots.real)
    assert not real[:, size:].any()
    expected = np.take_along_axis(x, np.asarray(slots.source)[:, None], axis=2)
    expected = np.where(np.asarray(slots.real)[:, None], expected, 0)
    np.testing.assert_array_equal(in_slots[..., :size], expected)
    blocks = expected.reshape(4, 2, -1, stride)[..., stride - summary :].reshape(4, 2, -1)
    np.testing.assert_array_equal(far[..., : blocks.shape[2]], blocks)
    np.testing.assert_array_equal(far[..., blocks.shape[2]], x[..., 0])


def test_a_shift_back_by_hand():
    moves = to_front([[0, 1, 1, 1, 0, 0, 0, 0]])
    moves = Moves(moves.bits & 7, moves.shifts)
    # Of the three at the front, the last goes back by 2.
    moves = append_backward_move(moves, jnp.array([[2]]), jnp.array([[2]]), 3)
    put = jnp.array([[1, 1, 0, 0, 1, 0, 0, 0]], bool)
    moves = bounded(moves, jnp.array([[0, 1, 1, 1, 0, 0, 0, 0]], bool), put)
    x = jnp.arange(8.0)[None, None]
    np.testing.assert_array_equal(move(x, moves), [[[1, 2, 0, 0, 3, 0, 0, 0]]])


def test_more_steps_than_bits_are_refused():
    bits = jnp.zeros((1, 1, 4), jnp.int32)
    with pytest.raises(ValueError, match="given 30 steps, expected at most 29"):
        bounded(Moves(bits, (1,) * 30), bits[0], bits[0])
