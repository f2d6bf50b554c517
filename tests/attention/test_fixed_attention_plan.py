"""What the fixed pattern holds at once, where tokens lie in it, and its rows of chosen tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention_plan import largest_array
from test_fixed_attention import QUICK, assert_close, draw_case, draw_masks, fixed, platform

from sft_jax.attention.fixed import fixed_attention, fixed_attention_of
from sft_jax.attention.fixed_blocks import make_pattern, make_slots


def test_slots_by_hand():
    # Blocks of 4: five real tokens fill one; the fifth stands at the end of the second.
    mask = jnp.array([[1, 0, 1, 1, 0, 1, 1, 1, 0], [1] + [0] * 8], bool)
    slots = make_slots(mask, 2, 8, make_pattern(4, 2))
    np.testing.assert_array_equal(slots.source, [[2, 3, 5, 6, 0, 0, 0, 7], [0] * 8])
    np.testing.assert_array_equal(slots.real, np.array([[1, 1, 1, 1, 0, 0, 0, 1], [0] * 8], bool))
    np.testing.assert_array_equal(slots.slot[0][mask[0, 1:]], [0, 1, 2, 3, 7])


# --- structure ------------------------------------------------------------------------------------


def gradient_jaxpr(t, mask):
    b, h, e = 1, 2, 4

    def loss(query, key, value, mask, weights):
        out = fixed(mask)(query, key, value, weights)
        return (out.values**2).sum() + (out.saliency**2).sum()

    heads, weights = jnp.ones((b, t + 1, h, e)), jnp.ones((b, t + 1))
    mask = jnp.ones((b, t + 1), bool) if mask else None
    forward = jax.make_jaxpr(loss)(heads, heads, heads, mask, weights)
    gradient = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return forward, gradient(heads, heads, heads, mask, weights)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_nothing_of_the_size_of_a_map_is_ever_held(machine):
    t = 1024
    with platform(machine):
        for jaxpr in gradient_jaxpr(t, mask=True):
            # A tile of 768 rows, or of 256 for each of two heads, and t / 4 shared keys.
            assert largest_array(jaxpr.jaxpr) <= t * t // 4


def test_without_a_mask_nothing_is_sorted_or_gathered():
    for masked in (True, False):
        text = str(gradient_jaxpr(70, mask=masked))
        assert [f" {name}[" in text for name in ("sort", "gather")] == [masked] * 2


# --- a few rows of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("t", "stride", "expressivity"), [(1, 32, 8), (40, 8, 3), (64, 8, 3), (83, 16, 16), (83, 16, 1)]
)
def test_rows_of_chosen_tokens_are_those_of_all(t, stride, expressivity, masked):
    pattern = {"stride": stride, "expressivity": expressivity}
    query, key, value, _, d_values, _ = draw_case(t, 3, t, 2, 3)
    mask = draw_masks(t, 3, t) if masked else np.ones((3, t + 1), bool)
    rng = np.random.default_rng(t)
    index = jnp.asarray(rng.integers(1, t + 1, size=(3, 6)))
    real = jnp.take_along_axis(jnp.asarray(mask), index, axis=1)
    d_rows = jnp.take_along_axis(d_values, index[..., None, None], axis=1)
    d_rows = d_rows * real[..., None, None]
    given = jnp.asarray(mask) if masked else None

    def pick(x):
        return jnp.take_along_axis(x, index[..., None, None], axis=1)

    def few(query, key, value):
        return fixed_attention_of(pick(query), index, key, value, key_mask=given, **pattern)

    def all_rows(query, key, value):
        return pick(fixed_attention(query, key, value, key_mask=given, **pattern).values)

    def step(attend):
        def both(query, key, value):
            values, back = jax.vjp(attend, query, key, value)
            return values, back(d_rows)

        values, grads = jax.jit(both, compiler_options=QUICK)(query, key, value)
        assert np.isfinite(values).all()
        return values * real[..., None, None], grads

    assert_close(step(few), step(all_rows))


def test_rows_of_chosen_tokens_need_no_row_of_all_keys():
    b, t, k, h, e = 1, 1024, 32, 1, 4
    key, index = jnp.ones((b, t + 1, h, e)), jnp.ones((b, k), int)

    def loss(query, key):
        return fixed_attention_of(query, index, key, key, key_mask=key[..., 0, 0] > 0).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(jnp.ones((b, k, h, e)), key)
    # 256 summaries and 25 local keys a row; the keys themselves are 4,100 numbers.
    assert largest_array(jaxpr.jaxpr) <= k * 300
    assert largest_array(jaxpr.jaxpr) < k * t


def test_rows_of_a_sequence_of_cls_alone():
    query, key = jnp.ones((2, 3, 1, 4)), jnp.ones((2, 1, 1, 4))
    out = fixed_attention_of(query, jnp.ones((2, 3), int), key, key)
    np.testing.assert_array_equal(out, jnp.zeros_like(query))
