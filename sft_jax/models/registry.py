"""Model names to classes: the only such table."""

import flax.linen as nn

from sft_jax.config.run import Config
from sft_jax.models.baselines.mbt import BottleneckTransformer
from sft_jax.models.baselines.mult import CrossmodalTransformer
from sft_jax.models.baselines.token_fusion import Concat, LateFusion, Unimodal
from sft_jax.models.sft import SparseFusionTransformer
from sft_jax.types import ConfigError

MODELS = {
    "sft": SparseFusionTransformer,
    "unimodal": Unimodal,
    "late": LateFusion,
    "concat": Concat,
    "mbt": BottleneckTransformer,
    "mult": CrossmodalTransformer,
}


def build(config: Config) -> nn.Module:
    """The model that a resolved configuration asks for.

    Raises:
        ConfigError: settings that the model cannot work with.
    """
    if not config.modalities:
        raise ConfigError(
            "modalities: given none, expected one at least; name them, or take them from the data"
        )
    model = MODELS[config.model.name]
    if hasattr(model, "check"):
        model.check(config.modalities, config.model)
    return model(modalities=config.modalities, config=config.model)
