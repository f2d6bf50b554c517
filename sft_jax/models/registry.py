"""The table of models by name."""

from sft_jax.config.run import Config
from sft_jax.models.base import FusionModel
from sft_jax.models.baselines.mbt import BottleneckTransformer
from sft_jax.models.baselines.mult import CrossmodalTransformer
from sft_jax.models.baselines.token_fusion import Concat, LateFusion, Unimodal
from sft_jax.models.sft import SparseFusionTransformer
from sft_jax.types import ConfigError

MODELS: dict[str, type[FusionModel]] = {
    "sft": SparseFusionTransformer,
    "unimodal": Unimodal,
    "late": LateFusion,
    "concat": Concat,
    "mbt": BottleneckTransformer,
    "mult": CrossmodalTransformer,
}


def build(config: Config) -> FusionModel:
    """Builds the model that a configuration describes.

    Raises:
        ConfigError: The model does not support some of the settings.
    """
    if not config.modalities:
        raise ConfigError(
            "modalities: given none, expected one at least; name them, or take them from the data"
        )
    name = config.model.name
    model = MODELS[name]
    if config.model.attention == "fixed" and not model.supports_fixed_attention:
        supported = [other for other, kind in MODELS.items() if kind.supports_fixed_attention]
        raise ConfigError(
            f"model.attention: given 'fixed' for model {name!r}, expected 'dense', since its "
            "sequences are not one CLS and one modality's tokens; 'fixed' works with "
            f"{', '.join(supported)}"
        )
    if config.mixup.mode != "none" and not model.supports_mixup:
        supported = [other for other, kind in MODELS.items() if kind.supports_mixup]
        raise ConfigError(
            f"mixup.mode: given {config.mixup.mode!r} for model {name!r}, expected 'none'; mixup "
            f"is defined for {', '.join(supported)}"
        )
    model.check(config.modalities, config.model)
    return model(modalities=config.modalities, config=config.model)
