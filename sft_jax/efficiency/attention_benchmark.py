"""Time and temporary memory of attention implementations, forward and backward."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.attention.dense import Attention, dot_product_attention
from sft_jax.attention.fixed import fixed_attention
from sft_jax.efficiency.throughput import time_interleaved

IMPLEMENTATIONS = ("xla", "streamed")
_FORWARD, _BACKWARD = "forward", "forward + backward"


def compare(
    *, batch: int, tokens: int, heads: int, head_width: int, saliency: bool, repeats: int
) -> list[dict[str, Any]]:
    """Compares `streamed` with `xla`: one table row for each implementation and pass.

    Half of the samples have padding, so both implementations apply a key mask.

    Args:
        batch: Number of samples `b`.
        tokens: Number of queries and keys `t`.
        heads: Number of heads `h`.
        head_width: Width `e` of a head.
        saliency: Whether to return the saliency too, as attention before a pool does.
        repeats: Number of timed rounds.
    """
    qkv, arguments = _inputs(batch, tokens, heads, head_width, saliency, masked=True)
    variants = {name: _dense(name, arguments) for name in IMPLEMENTATIONS}
    return _compare(variants, qkv, repeats)


def compare_fixed(
    *,
    batch: int,
    tokens: int,
    heads: int,
    head_width: int,
    saliency: bool,
    masked: bool,
    strides: Sequence[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Compares `fixed` block-sparse attention with `streamed` dense attention, as `compare` does.

    Args:
        batch: Number of samples `b`.
        tokens: Number of tokens `t` besides CLS, which adds a query and a key.
        heads: Number of heads `h`.
        head_width: Width `e` of a head.
        saliency: Whether to return the saliency too.
        masked: Whether half of the samples have padding; without, no mask is applied.
        strides: Block sizes of the pattern, one row each.
        repeats: Number of timed rounds.
    """
    qkv, arguments = _inputs(batch, tokens + 1, heads, head_width, saliency, masked)
    variants = {"streamed": _dense("streamed", arguments)}
    for stride in strides:
        fixed = functools.partial(fixed_attention, stride=stride, **arguments)
        variants[f"fixed, stride {stride}"] = lambda qkv, fixed=fixed: fixed(*qkv)
    return _compare(variants, qkv, repeats)


def _dense(implementation, arguments):
    return lambda qkv: dot_product_attention(*qkv, implementation=implementation, **arguments)


def _inputs(batch, length, heads, head_width, saliency, masked):
    key = jax.random.key(0)
    shape = (batch, length, heads, head_width)
    qkv = tuple(jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(3))
    padding = jnp.where(jnp.arange(batch) % 2, 0, length // 4 if masked else 0)
    real = jnp.arange(length) < (length - padding)[:, None]
    weights = real / real.sum(axis=1, keepdims=True) if saliency else None
    return qkv, {"key_mask": real if masked else None, "query_weights": weights}


def _compare(
    variants: Mapping[str, Callable[[Any], Attention]], qkv, repeats: int
) -> list[dict[str, Any]]:
    """One row for each variant and pass, with ratios to the first variant."""
    first = next(iter(variants))
    compiled = {}
    for name, forward in variants.items():

        def loss(qkv, forward=forward):
            return jnp.sum(jnp.square(forward(qkv).values))

        compiled[_FORWARD, name] = jax.jit(forward).lower(qkv).compile()
        compiled[_BACKWARD, name] = jax.jit(jax.grad(loss)).lower(qkv).compile()
    calls = {name: functools.partial(call, qkv) for name, call in compiled.items()}
    timings = time_interleaved(calls, repeats)
    rows = []
    for (direction, name), timing in timings.items():
        memory = _temporary_bytes(compiled[direction, name])
        base = _temporary_bytes(compiled[direction, first])
        rows.append(
            {
                "pass": direction,
                "attention": name,
                "median ms": round(timing.median * 1e3, 1),
                "min to max ms": f"{timing.low * 1e3:.1f} to {timing.high * 1e3:.1f}",
                "times faster": round(timings[direction, first].median / timing.median, 2),
                "temporary MB": round(memory / 1e6, 1),
                "times smaller": round(base / memory, 1),
            }
        )
    return sorted(rows, key=lambda row: row["pass"])


def _temporary_bytes(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes
