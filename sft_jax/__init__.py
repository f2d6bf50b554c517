"""Sparse Fusion Transformers (arXiv 2111.11992) in JAX and Flax."""

from typing import Any

from sft_jax.version import __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: reading the version or a configuration should not start jax.
    if name == "load":
        from sft_jax.training.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
