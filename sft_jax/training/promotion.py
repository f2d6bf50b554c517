"""Implicit type promotion while the programs of the package are traced."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def standard_promotion(function: F) -> F:
    """Traces `function` with JAX's default promotion of dtypes and ranks.

    Users may set `jax_numpy_dtype_promotion` to `strict` or `jax_numpy_rank_promotion` to `raise`
    to check their own code, and must still be able to train and use models.
    """

    @functools.wraps(function)
    def promoting(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return promoting  # type: ignore[return-value]  # the same signature
