"""Baselines without fusion, with late and with early fusion (arXiv 2111.11992, section 4.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ConcatOptions, LateOptions, ModelConfig, UnimodalOptions
from sft_jax.models.base import FusionModel, Head, Output, refuse_mixup
from sft_jax.models.blocks import make_block
from sft_jax.models.layers import BlockConfig, EncoderBlock, EncoderStack, Keys, fold_in
from sft_jax.models.mixup import Mixup
from sft_jax.models.pools import max_windows
from sft_jax.models.tokenizers import Tokenizer, check_inputs, tokenize, with_cls
from sft_jax.types import ConfigError


class Unimodal(FusionModel):
    """One modality alone: `num_pre_layers` blocks, max pool, `num_post_layers` blocks, head.

    Only the modality that `UnimodalOptions.modality` names is read.
    """

    supports_fixed_attention = True

    @staticmethod
    def check(modalities: tuple[ModalitySpec, ...], config: ModelConfig):
        """Raises `ConfigError` if the modality or its window is missing or does not fit."""
        spec = _only(modalities, config)
        _check_window(config, spec, spec.num_tokens)

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """See `Model.__call__`."""
        refuse_mixup(mixup)
        check_inputs(inputs, mask, self.modalities)
        spec = _only(self.modalities, self.config)
        block, pre = BlockConfig.from_model(self.config), self.config.num_pre_layers
        tokenizer = Tokenizer(spec, block, name=f"tokenizer_{spec.name}")
        z, token_mask = tokenizer(inputs[spec.name], mask[spec.name])
        z, token_mask = EncoderStack(block, pre, name="encoder")(z, token_mask, fold_in(keys, 0))
        pooled = max_windows(z[:, 1:], token_mask[:, 1:], _window(self.config, spec))
        z = jnp.concatenate([z[:, :1], pooled.tokens], axis=1)
        stack = EncoderStack(block.dense, self.config.num_post_layers, name="fusion")
        z, _ = stack(z, with_cls(pooled.mask), fold_in(keys, 1))
        return Output(Head(self.config.num_classes, name="head")(z[:, 0]), {spec.name: pooled})


class LateFusion(FusionModel):
    """Every modality through all blocks on its own, one shared head, logits summed.

    `LateOptions.duplicate_cls` inserts a second copy of CLS after the first block, as in the code
    of the paper's authors.
    """

    supports_fixed_attention = True

    @staticmethod
    def check(modalities: tuple[ModalitySpec, ...], config: ModelConfig):
        """Raises `ConfigError` if fixed attention is combined with a second CLS."""
        if config.attention == "fixed" and _late_options(config).duplicate_cls:
            raise ConfigError(
                "model.attention: given 'fixed' for model 'late' with duplicate_cls, expected "
                "'dense', since fixed attention needs sequences with one CLS; set "
                "model.options.duplicate_cls=False or model.attention='dense'"
            )

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Classifies a batch; a missing modality adds no logits."""
        refuse_mixup(mixup)
        block = BlockConfig.from_model(self.config)
        depth = self.config.num_pre_layers + self.config.num_post_layers
        head = Head(self.config.num_classes, name="head")
        logits: Any = 0.0
        tokenized = tokenize(inputs, mask, self.modalities, block)
        for i, (name, (z, token_mask)) in enumerate(tokenized.items()):
            if depth:
                own = fold_in(keys, i)
                first = make_block(self, EncoderBlock, block, name=f"first_{name}")
                z = first(z, token_mask, fold_in(own, 0))
                if _late_options(self.config).duplicate_cls:
                    z = jnp.concatenate([z[:, :1], z], axis=1)
                    token_mask = with_cls(token_mask)
                rest = EncoderStack(block, depth - 1, name=f"rest_{name}")
                z, _ = rest(z, token_mask, fold_in(own, 1))
            present = mask[name].any(axis=1, keepdims=True)
            logits = logits + jnp.where(present, head(z[:, 0]), 0)
        return Output(logits, {})


class Concat(FusionModel):
    """All tokens in one sequence: one block, max pool, the other blocks, head.

    Every modality brings its CLS; the first one's is kept as CLS, the others are pooled as tokens.
    """

    @staticmethod
    def check(modalities: tuple[ModalitySpec, ...], config: ModelConfig):
        """Raises `ConfigError` without a window that fits, or a block to pool after."""
        # The first CLS stays in front; the other ones are pooled as tokens.
        num_tokens = sum(spec.num_tokens + 1 for spec in modalities) - 1
        _check_window(config, modalities[0], num_tokens)
        if config.num_pre_layers + config.num_post_layers < 1:
            raise ConfigError(
                "model.num_post_layers: given 0 with num_pre_layers 0, expected at least 1 of "
                "either for model 'concat'; set num_post_layers"
            )

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Classifies a batch; nothing attends to a missing modality."""
        refuse_mixup(mixup)
        block = BlockConfig.from_model(self.config)
        parts = tokenize(inputs, mask, self.modalities, block).values()
        z = jnp.concatenate([tokens for tokens, _ in parts], axis=1)
        masks = [present_cls(own) for _, own in parts]
        token_mask = jnp.concatenate(masks, axis=1).at[:, 0].set(True)
        first = make_block(self, EncoderBlock, block, name="first")
        z = first(z, token_mask, fold_in(keys, 0))
        pooled = max_windows(z[:, 1:], token_mask[:, 1:], _window(self.config, self.modalities[0]))
        z = jnp.concatenate([z[:, :1], pooled.tokens], axis=1)
        depth = self.config.num_pre_layers + self.config.num_post_layers - 1
        z, _ = EncoderStack(block, depth, name="rest")(z, with_cls(pooled.mask), fold_in(keys, 1))
        return Output(Head(self.config.num_classes, name="head")(z[:, 0]), {})


def present_cls(mask: Bool[Array, "b t"]) -> Bool[Array, "b t"]:
    """Token mask of a modality, in which CLS is real only if one of its tokens is."""
    return mask.at[:, 0].set(mask[:, 1:].any(axis=1))


def _only(modalities: tuple[ModalitySpec, ...], config: ModelConfig) -> ModalitySpec:
    assert isinstance(config.options, UnimodalOptions)
    given = config.options.modality
    if not given and len(modalities) == 1:
        return modalities[0]
    for spec in modalities:
        if spec.name == given:
            return spec
    raise ConfigError(
        f"model.options.modality: given {given!r}, expected one of "
        f"{', '.join(spec.name for spec in modalities)}; name the one that model 'unimodal' uses"
    )


def _window(config: ModelConfig, spec: ModalitySpec) -> int:
    """Window of the baseline or the modality; 0 if neither has one."""
    assert isinstance(config.options, UnimodalOptions | ConcatOptions)
    return config.options.window or spec.window or 0


def _late_options(config: ModelConfig) -> LateOptions:
    assert isinstance(config.options, LateOptions)
    return config.options


def _check_window(config: ModelConfig, spec: ModalitySpec, num_tokens: int):
    window = _window(config, spec)
    if not window:
        raise ConfigError(
            f"model.options.window: given 0 while modality {spec.name!r} has pool {spec.pool!r} "
            f"without a window, expected the window of model {config.name!r}'s max pool; set it"
        )
    if window > num_tokens:
        raise ConfigError(
            f"model.options.window: given {window} for the {num_tokens} tokens that model "
            f"{config.name!r} pools, expected 1 to {num_tokens}; set it in that range"
        )
