"""How much attention holds at once, and which implementation is chosen when."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from sft_jax.models import attention
from sft_jax.models.attention import choose_implementation, dot_product_attention
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
    monkeypatch.setattr(attention, "_CPU_TILE", 16 * 128)
    monkeypatch.setattr(attention, "_ACCELERATOR_ROWS", 16)
    b, t, h, e = 2, 128, 2, 4
    with mock.patch.object(jax, "default_backend", return_value=machine):
        assert largest_of_gradient("xla", b, t, h, e) >= b * h * t * t
        # A tile is 16 rows of one or two heads on a CPU, of all four on an accelerator.
        heads = 2 if machine == "cpu" else b * h
        assert largest_of_gradient("streamed", b, t, h, e) == heads * 16 * t


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "forward", "backward"),
    [
        (10, 100, 100, (1, 100), (2, 50)),
        (10, 101, 101, (1, 101), (2, 51)),
        (10, 1, 7, (1, 1), (2, 1)),
        # 2^21 scores over 4096 keys leave 512 of 4096 rows; over 4097 only 511, in 9 even blocks.
        (4, 4096, 4096, (1, 512), (2, 512)),
        (4, 4097, 4097, (1, 456), (2, 456)),
        (4, 3, 2**22, (1, 1), (2, 1)),
    ],
)
def test_plan_on_a_cpu_by_hand(heads, queries, keys, forward, backward):
    assert attention._plan(heads, queries, keys, "cpu") == (forward, backward)


def test_plan_on_an_accelerator_takes_all_heads():
    for queries, rows in ((4096, 256), (100, 100)):
        assert attention._plan(6, queries, 4096, "tpu") == ((6, rows), (6, rows))


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
