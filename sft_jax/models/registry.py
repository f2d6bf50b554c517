"""Model names to classes: the only such table."""

import flax.linen as nn

from sft_jax.config import Config
from sft_jax.models.sft import SparseFusionTransformer
from sft_jax.types import check_choice

MODELS = {"sft": SparseFusionTransformer}


def build(config: Config) -> nn.Module:
    """The model that a resolved configuration asks for.

    Raises:
        ConfigError: unknown model name.
    """
    check_choice("model.name", config.model.name, tuple(MODELS))
    return MODELS[config.model.name](modalities=config.modalities, config=config.model)
