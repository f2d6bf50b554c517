"""Multimodal bottleneck transformer (arXiv 2107.00135), the strongest baseline of the paper."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import MbtOptions, ModelConfig
from sft_jax.models.base import FusionModel, Head, Output, refuse_mixup
from sft_jax.models.blocks import make_block
from sft_jax.models.layers import (
    OF_EVERY_LAYER,
    BlockConfig,
    EncoderBlock,
    EncoderStack,
    Keys,
    fold_in,
)
from sft_jax.models.mixup import Mixup
from sft_jax.models.tokenizers import tokenize
from sft_jax.types import ConfigError

State = tuple[tuple[Float[Array, "b _ d"], ...], Float[Array, "b n d"]]


class BottleneckTransformer(FusionModel):
    """Separate blocks for each modality, which share bottleneck tokens from one layer on.

    A `sequential` exchange visits the modalities in their order.
    """

    supports_fixed_attention = True

    @staticmethod
    def check(modalities: tuple[ModalitySpec, ...], config: ModelConfig):
        """Raises `ConfigError` if fusion would start after the last layer."""
        fuse_at, depth = _options(config).fuse_at, config.num_layers
        if fuse_at > depth:
            raise ConfigError(
                f"model.options.fuse_at: given {fuse_at} for {depth} layers, expected at most "
                f"{depth}, which fuses nothing; choose a layer from 0 on"
            )

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Classifies a batch; a missing modality reaches neither bottleneck nor logits."""
        refuse_mixup(mixup)
        block, options = BlockConfig.from_model(self.config), _options(self.config)
        depth = self.config.num_layers
        start = options.num_unfused_layers(self.config.num_pre_layers, depth)
        tokens, masks = [], []
        tokenized = tokenize(inputs, mask, self.modalities, block)
        for i, (name, (z, token_mask)) in enumerate(tokenized.items()):
            stack = EncoderStack(block, start, name=f"encoder_{name}")
            z, token_mask = stack(z, token_mask, fold_in(keys, i))
            tokens.append(z)
            masks.append(token_mask)
        if depth > start:
            shape = (tokens[0].shape[0], options.num_bottlenecks, self.config.embed_dim)
            layer = BottleneckLayer(
                tuple(tokenized),
                block.dense,
                options.exchange,
                name="fusion",
            )
            own = fold_in(keys, len(self.modalities))

            def body(layer, state, index):
                return layer(state, tuple(masks), fold_in(own, index)), None

            scan = nn.scan(body, **OF_EVERY_LAYER, length=depth - start)
            state = (tuple(tokens), jnp.zeros(shape, tokens[0].dtype))
            (tokens, _), _ = scan(layer, state, jnp.arange(depth - start))
        head = Head(self.config.num_classes, name="head")
        present = jnp.stack([own[:, 1:].any(axis=1) for own in masks])[..., None]  # [m, b, 1]
        logits = jnp.stack([head(z[:, 0]) for z in tokens])
        logits = jnp.where(present, logits, 0).sum(axis=0)
        return Output(logits / jnp.maximum(present.sum(axis=0), 1), {})


def _options(config: ModelConfig) -> MbtOptions:
    assert isinstance(config.options, MbtOptions)
    return config.options


class BottleneckLayer(nn.Module):
    """One block per modality, each on its own tokens and the bottleneck tokens.

    Attributes:
        names: Names of the modalities.
        config: Settings of the blocks.
        exchange: `sequential` passes the bottleneck from one modality to the next; `average` gives
            all modalities the same and averages their updates (arXiv 2107.00135, equation 9).
    """

    names: tuple[str, ...]
    config: BlockConfig
    exchange: str

    @nn.compact
    def __call__(
        self, state: State, masks: tuple[Bool[Array, "b _"], ...], keys: Keys | None
    ) -> State:
        """Updates tokens and bottleneck; a missing modality leaves the bottleneck unchanged."""
        tokens, bottleneck = state
        real = jnp.ones(bottleneck.shape[:2], bool)
        out, proposals, presents = [], [], []
        for i, (name, z, mask) in enumerate(zip(self.names, tokens, masks, strict=True)):
            block = make_block(self, EncoderBlock, self.config, name=f"block_{name}", loop=True)
            joined = block(
                jnp.concatenate([z, bottleneck], axis=1),
                jnp.concatenate([mask, real], axis=1),
                fold_in(keys, i),
            )
            t = z.shape[1]
            out.append(joined[:, :t])
            present = mask[:, 1:].any(axis=1)[:, None, None]
            if self.exchange == "sequential":
                bottleneck = jnp.where(present, joined[:, t:], bottleneck)
            else:
                proposals.append(jnp.where(present, joined[:, t:], 0))
                presents.append(present)
        if self.exchange == "average":
            count = sum(present.astype(bottleneck.dtype) for present in presents)
            bottleneck = jnp.where(count > 0, sum(proposals) / jnp.maximum(count, 1), bottleneck)
        return tuple(out), bottleneck
