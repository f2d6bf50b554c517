"""Models to compare a configuration with, at its own shapes and widths."""

import dataclasses
from typing import Any

from sft_jax.config.checks import check_choice
from sft_jax.config.modality import WINDOW_POOLS, ModalitySpec
from sft_jax.config.model import ConcatOptions, ModelOptions, NoOptions, UnimodalOptions
from sft_jax.config.run import Config, MixupConfig
from sft_jax.models.registry import MODELS
from sft_jax.types import ConfigError

VARIANTS = {
    "sft": "the sparse fusion transformer with the configuration's pools and attention",
    "dense": "dense fusion: like sft, but every token is kept (pool none)",
    "fixed": "like sft, with block-sparse attention",
    "cls_topk": "like sft, keeping as many tokens, ranked by the attention of CLS",
    "fixed_cls_topk": "both",
    "unimodal": "the modality with the most tokens alone",
    "concat": "all tokens in one sequence",
    "late": "every modality separately, logits summed",
    "mbt": "bottleneck transformer",
    "mult": "crossmodal transformer",
}


def variant(config: Config, name: str) -> Config:
    """Returns `config` as another model, without mixup, which only SFT supports.

    Args:
        config: Configuration of any model, with its modalities.
        name: Key of `VARIANTS`.

    Raises:
        ConfigError: The name is unknown, or there are no modalities.
    """
    check_choice("compare", name, tuple(VARIANTS))
    if not config.modalities:
        raise ConfigError(
            "modalities: given none, expected the modalities, since no data is read here; set them"
        )
    modalities, model = config.modalities, config.model
    fixed = model.attention == "fixed"
    family = "sft"
    options: ModelOptions = NoOptions()
    if name == "dense":
        modalities = tuple(
            dataclasses.replace(spec, pool="none", k=None, window=None) for spec in modalities
        )
    elif name.endswith("cls_topk"):
        modalities = tuple(
            dataclasses.replace(spec, pool="cls_topk", k=_tokens_out(spec), window=None)
            for spec in modalities
        )
    elif name not in ("sft", "fixed"):
        family = name
    if name.startswith("fixed"):
        fixed = True
    elif not MODELS[family].supports_fixed_attention:
        fixed = False
    if family == model.name:
        options = model.options
    elif family == "unimodal":
        longest = max(modalities, key=lambda spec: spec.num_tokens)
        options = UnimodalOptions(modality=longest.name, window=_window(longest))
    elif family == "concat":
        options = ConcatOptions(window=_window(modalities[0]))
    changes: dict[str, Any] = {
        "name": family,
        "options": options,
        "attention": "fixed" if fixed else "dense",
    }
    if not fixed:
        defaults = type(model)
        changes |= {"stride": defaults.stride, "expressivity": defaults.expressivity}
    return dataclasses.replace(
        config,
        modalities=modalities,
        model=dataclasses.replace(model, **changes),
        mixup=MixupConfig(),
    )


def _tokens_out(spec: ModalitySpec) -> int:
    if spec.pool in WINDOW_POOLS:
        return spec.num_tokens // spec.stride
    return spec.k or spec.num_tokens


def _window(spec: ModalitySpec) -> int:
    """A window that leaves about as many tokens as the modality's pool."""
    return spec.window or spec.num_tokens // _tokens_out(spec)
