"""Which kind of device a program is written for."""

import contextlib
from collections.abc import Iterator

import jax

# Part of the key that JAX caches traces by, so that no trace for another platform is taken up.
_planned = jax.make_user_context(None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: of the devices at hand, unless `compiling_for` says another."""
    return _planned.value or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, models are traced as they would be on a machine with such devices.

    Args:
        platform: `cpu`, `gpu` or `tpu`.
    """
    with _planned(platform):
        yield
