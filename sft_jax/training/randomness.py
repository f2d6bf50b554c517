"""Random keys derived from seed, step, stream and position in the global batch; stateless."""

import zlib

import jax
from jaxtyping import Array, Int, Key

# An array if runs with different seeds share a program.
Seed = int | Int[Array, ""]


def step_key(seed: Seed, step: jax.Array, stream: str) -> Key[Array, ""]:
    """Key of a stream in a step, equal on all devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, zlib.crc32(stream.encode()))


def sample_keys(
    seed: Seed, step: jax.Array, stream: str, positions: Int[Array, " b"]
) -> Key[Array, " b"]:
    """One key per sample, from its position in the global batch."""
    key = step_key(seed, step, stream)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def stream_keys(keys: Key[Array, " b"], stream: str) -> Key[Array, " b"]:
    """Derives the keys of a named stream from the keys of samples."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(stream.encode()))
