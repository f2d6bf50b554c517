"""`streamed` against `xla` attention: time and temporary memory, forward and backward."""

from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.efficiency.throughput import time_interleaved
from sft_jax.models.attention import dot_product_attention

IMPLEMENTATIONS = ("xla", "streamed")


def compare(
    *, batch: int, tokens: int, heads: int, head_width: int, saliency: bool, repeats: int
) -> list[dict[str, Any]]:
    """Rows of a table: one implementation and pass each, with the ratio to `xla`.

    Half of the samples have padding, so both implementations apply a key mask.

    Args:
        batch: samples `b`.
        tokens: queries and keys `t`.
        heads: heads `h`.
        head_width: width `e` of a head.
        saliency: also return the saliency, as the attention in front of a pool does.
        repeats: timed rounds.
    """
    key = jax.random.key(0)
    shape = (batch, tokens, heads, head_width)
    qkv = tuple(jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(3))
    real = (
        jnp.arange(tokens) < jnp.where(jnp.arange(batch) % 2, tokens, tokens - tokens // 4)[:, None]
    )
    weights = real / real.sum(axis=1, keepdims=True) if saliency else None
    compiled = {}
    for implementation in IMPLEMENTATIONS:

        def forward(qkv, implementation=implementation):
            return dot_product_attention(
                *qkv, key_mask=real, query_weights=weights, implementation=implementation
            )

        def loss(qkv, forward=forward):
            return jnp.sum(jnp.square(forward(qkv).values))

        compiled["forward", implementation] = jax.jit(forward).lower(qkv).compile()
        compiled["forward + backward", implementation] = (
            jax.jit(jax.grad(loss)).lower(qkv).compile()
        )
    calls = {name: lambda call=call: call(qkv) for name, call in compiled.items()}
    timings = time_interleaved(calls, repeats)
    rows = []
    for (direction, implementation), timing in timings.items():
        memory = compiled[direction, implementation].memory_analysis().temp_size_in_bytes
        base = compiled[direction, "xla"].memory_analysis().temp_size_in_bytes
        rows.append(
            {
                "pass": direction,
                "attention": implementation,
                "median ms": round(timing.median * 1e3, 1),
                "min to max ms": f"{timing.low * 1e3:.1f} to {timing.high * 1e3:.1f}",
                "times faster": round(timings[direction, "xla"].median / timing.median, 2),
                "temporary MB": round(memory / 1e6, 1),
                "times smaller": round(base / memory, 1),
            }
        )
    return sorted(rows, key=lambda row: row["pass"])
