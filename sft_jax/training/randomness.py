"""Random keys by seed, step, stream name and position in the global batch; none is carried."""

import zlib

import jax
from jaxtyping import Array, Int, Key

# Traced where runs of different seeds share a program.
Seed = int | Int[Array, ""]


def step_key(seed: Seed, step: jax.Array, stream: str) -> Key[Array, ""]:
    """The key of a stream in a step, the same on every device."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, zlib.crc32(stream.encode()))


def sample_keys(
    seed: Seed, step: jax.Array, stream: str, positions: Int[Array, " b"]
) -> Key[Array, " b"]:
    """One key a sample, by its position in the global batch."""
    key = step_key(seed, step, stream)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def stream_keys(keys: Key[Array, " b"], stream: str) -> Key[Array, " b"]:
    """A named stream of keys that samples have already."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(stream.encode()))
