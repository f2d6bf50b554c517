"""The network's parts, the sparse fusion model, its baselines, and the registry of models.

`build` makes the model of a configuration; `SparseFusionTransformer` is the paper's.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base": "Output",
        "registry": "build",
        "sft": "SparseFusionTransformer",
    },
)
