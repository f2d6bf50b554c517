"""How much attention holds at once, and which implementation is chosen when."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from sft_jax.attention import streamed
from sft_jax.attention.dense import choose_implementation, dot_product_attention
from sft_jax.types import ConfigError

# --- memory -----------------------------------------------------------------------------------


def largest_array(jaxpr):
    """Elements of the largest array anywhere in a jaxpr, inner ones included."""
    largest = 0
    for eqn in jaxpr.eqns:
        sizes = [v.aval.size for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "size")]
        inner = jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        )
        for entry in inner:
            if isinstance(entry, core.ClosedJaxpr):
                sizes.append(largest_array(entry.jaxpr))
            elif isinstance(entry, core.Jaxpr):
                sizes.append(largest_array(entry))
        largest = max([largest, *sizes])
    return largest


def largest_of_gradient(implementation, b, t, h, e):
    def loss(query, key, value, mask, weights):
        out = dot_product_attention(
            query, key, value, key_mask=mask, query_weights=weights, implementation=implementation
        )
        return (out.values**2).sum() + (out.saliency**2).sum()

    heads, mask, weights = jnp.ones((b, t, h, e)), jnp.ones((b, t), bool), jnp.ones((b, t))
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
    jaxpr = jax.make_jaxpr(gradient)(heads, heads, heads, mask, weights)
    return largest_array(jaxpr.jaxpr)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_streamed_holds_no_map_and_xla_does(machine, monkeypatch):
    monkeypatch.setattr(streamed, "_CPU_TILE", 16 * 128)
    monkeypatch.setattr(streamed, "_CPU_BACKWARD_TILE", 16 * 128)
    monkeypatch.setattr(streamed, "_ACCELERATOR_ROWS", 16)
    b, t, h, e = 2, 128, 2, 4
    with mock.patch.object(jax, "default_backend", return_value=machine):
        assert largest_of_gradient("xla", b, t, h, e) >= b * h * t * t
        # A tile is 16 rows of one head on a CPU, of all four on an accelerator.
        heads = 1 if machine == "cpu" else b * h
        assert largest_of_gradient("streamed", b, t, h, e) == heads * 16 * t


@pytest.mark.parametrize(
    ("queries", "keys", "forward", "backward"),
    [
        (100, 100, 112, 112),  # whole vectors of 16
        (7, 7, 7, 7),
        (1, 7, 1, 1),
        # 2^21 scores over 4096 keys leave 512 of 4096 rows, 2^20 leave 256.
        (4096, 4096, 512, 256),
        (3, 2**22, 1, 1),
    ],
)
def test_plan_on_a_cpu_by_hand(queries, keys, forward, backward):
    assert streamed.plan(queries, keys, "cpu") == (forward, backward)


def test_plan_on_an_accelerator():
    for queries, rows in ((4096, 256), (100, 100)):
        assert streamed.plan(queries, 4096, "tpu") == (rows, rows)


# --- choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("implementation", "machine", "queries", "keys", "expected"),
    [
        ("xla", "cpu", 4096, 4096, "xla"),
        ("streamed", "cpu", 4, 4, "streamed"),
        ("auto", "cpu", 127, 128, "xla"),
        ("auto", "cpu", 128, 128, "streamed"),
        ("auto", "cpu", 1, 128 * 128, "streamed"),
        ("auto", "gpu", 1023, 1024, "xla"),
        ("auto", "gpu", 1024, 1024, "streamed"),
        ("auto", "tpu", 127, 128, "xla"),
        ("auto", "tpu", 128, 128, "pallas"),
        ("auto", "tpu", 1024, 1024, "pallas"),
        # A map of 128 queries no longer fits on the chip.
        ("auto", "tpu", 128, 2**14, "streamed"),
    ],
)
def test_choice_by_platform_and_length(implementation, machine, queries, keys, expected):
    assert choose_implementation(implementation, machine, queries, keys) == expected


def test_unknown_implementation_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"given 'flash', expected one of auto, xla, streamed, "):
        choose_implementation("flash", "cpu", 4, 4)
