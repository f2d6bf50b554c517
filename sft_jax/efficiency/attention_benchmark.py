"""Time and temporary memory of attention implementations, forward and backward."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.attention.dense import Attention, dot_product_attention
from sft_jax.attention.fixed import fixed_attention
from sft_jax.config.checks import check_choice
from sft_jax.efficiency.benchmarks import Benchmark, machine
from sft_jax.efficiency.throughput import time_interleaved
from sft_jax.types import ConfigError

IMPLEMENTATIONS = ("xla", "streamed", "fixed")
_FORWARD, _BACKWARD = "forward", "forward + backward"


def compare(
    implementations: Sequence[str],
    shape: Sequence[int | str],
    strides: Sequence[int | str],
    saliency: bool,
    masked: bool,
    repeats: int,
    window: int,
) -> Benchmark:
    """Compares implementations with the first: one table row for each of them and each pass.

    Args:
        implementations: Names among `IMPLEMENTATIONS`; `fixed` is block-sparse.
        shape: Samples `b`, tokens `t`, heads `h` and the width `e` of a head.
        strides: Block sizes of `fixed`, one row each.
        saliency: Whether to return the saliency too, as attention before a pool does.
        masked: Whether every other sample has padding; if not, no mask is applied.
        repeats: Number of timed rounds, after one warm-up round.
        window: Consecutive calls per round, synchronised only at the end.

    Raises:
        ConfigError: An implementation is unknown, or a size is not a positive whole number.
    """
    sizes, blocks = _positive("shape", shape), _positive("strides", strides)
    if len(sizes) != 4:
        raise ConfigError(f"shape: given {len(sizes)} sizes, expected four: b, t, h, e")
    qkv, arguments = _inputs(sizes, saliency, masked)
    variants: dict[str, Callable[[Any], Attention]] = {}
    for name in implementations:
        check_choice("attention", name, IMPLEMENTATIONS)
        if name == "fixed":
            for stride in blocks:
                variants[f"fixed, stride {stride}"] = _fixed(stride, arguments)
        else:
            variants[name] = _dense(name, arguments)
    rows = _compare(variants, qkv, repeats, window)
    described = ", ".join(f"{letter} {size}" for letter, size in zip("bthe", sizes, strict=True))
    note = f"{described}, saliency {saliency}, masked {masked}, float32, {machine()}"
    return Benchmark({"": rows}, note, {"machine": machine(), "attention": rows})


def _positive(name: str, values: Sequence[int | str]) -> tuple[int, ...]:
    if not all(str(value).isdecimal() and int(value) for value in values):
        raise ConfigError(f"{name}: given {list(values)}, expected positive whole numbers")
    return tuple(map(int, values))


def _dense(implementation, arguments):
    return lambda qkv: dot_product_attention(*qkv, implementation=implementation, **arguments)


def _fixed(stride, arguments):
    return lambda qkv: fixed_attention(*qkv, stride=stride, **arguments)


def _inputs(shape, saliency, masked):
    key = jax.random.key(0)
    batch, length = shape[:2]
    qkv = tuple(jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(3))
    padding = jnp.where(jnp.arange(batch) % 2, 0, length // 4 if masked else 0)
    real = jnp.arange(length) < (length - padding)[:, None]
    weights = real / real.sum(axis=1, keepdims=True) if saliency else None
    return qkv, {"key_mask": real if masked else None, "query_weights": weights}


def _compare(
    variants: Mapping[str, Callable[[Any], Attention]], qkv, repeats: int, window: int
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
    timings = time_interleaved(calls, repeats, window)
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
