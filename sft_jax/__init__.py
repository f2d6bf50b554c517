"""Sparse Fusion Transformers (arXiv 2111.11992) in JAX and Flax."""

from sft_jax.version import __version__

__all__ = ["__version__"]
