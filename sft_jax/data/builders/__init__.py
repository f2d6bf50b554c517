"""Sources as TFDS builders that write ArrayRecord files without TensorFlow.

The builder of a source such as `multiple_features` is the class `MultipleFeatures` in the module of
that name. A module is imported only when its source is used.
"""

import importlib

from sft_jax.data.builders.base import SourceBuilder

__all__ = ["SourceBuilder", "builder_class"]


def builder_class(source: str) -> type[SourceBuilder]:
    """Returns the builder of a source, a key of `sft_jax.config.data.OPTIONS`."""
    module = importlib.import_module(f"{__name__}.{source}")
    return getattr(module, "".join(word.capitalize() for word in source.split("_")))
