"""Rules of implicit promotion under which the package's programs are traced."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def standard_promotion(function: F) -> F:
    """`function` under JAX's default promotion of dtypes and ranks.

    A program may set `jax_numpy_dtype_promotion` to `strict` or `jax_numpy_rank_promotion` to
    `raise` to check its own code; that must not stop it from training and using a model.
    """

    @functools.wraps(function)
    def promoting(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return promoting  # type: ignore[return-value]  # the same signature
