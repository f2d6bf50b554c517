"""The platform that models are traced for."""

import contextlib
from collections.abc import Iterator

import jax

# Part of JAX's trace cache key, so that no trace for another platform is reused.
_planned = jax.make_user_context(None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: the local platform, unless inside `compiling_for`."""
    return _planned.value or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Context in which models are traced as on another platform.

    Args:
        platform: `cpu`, `gpu` or `tpu`.
    """
    with _planned(platform):
        yield
