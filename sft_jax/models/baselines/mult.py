"""Multimodal transformer with crossmodal attention (arXiv 1906.00295)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.models.base import FusionModel, Head, Output, refuse_mixup
from sft_jax.models.baselines.token_fusion import present_cls
from sft_jax.models.blocks import make_block
from sft_jax.models.layers import (
    OF_EVERY_LAYER,
    AttentionResidual,
    BlockConfig,
    EncoderStack,
    Keys,
    Layer,
    LayerNorm,
    MlpResidual,
    dense,
    fold_in,
)
from sft_jax.models.mixup import Mixup
from sft_jax.models.tokenizers import tokenize


class CrossBlock(Layer):
    """Attention residual from a target to a source, then MLP residual on the target."""

    config: BlockConfig

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b q d"],
        source: Float[Array, "b k d"],
        source_mask: Bool[Array, "b k"],
        keys: Keys | None,
    ) -> Float[Array, "b q d"]:
        """Returns the target's new tokens."""
        attention = AttentionResidual(self.config, name="attention")
        z, _ = attention(z, source_mask, fold_in(keys, 0), context=source)
        return MlpResidual(self.config, name="mlp")(z, fold_in(keys, 1))


class CrossStack(nn.Module):
    """`depth` crossmodal blocks compiled as one loop, always attending to the tokenized source."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b q d"],
        source: Float[Array, "b k d"],
        source_mask: Bool[Array, "b k"],
        keys: Keys | None,
    ) -> Float[Array, "b q d"]:
        """Returns the target's tokens after the last block."""
        if self.depth == 0:
            return z

        def body(block, z, layer):
            return block(z, source, source_mask, fold_in(keys, layer)), None

        scan = nn.scan(body, **OF_EVERY_LAYER, length=self.depth)
        block = make_block(self, CrossBlock, self.config, name="block", loop=True)
        return scan(block, z, jnp.arange(self.depth))[0]


class CrossmodalTransformer(FusionModel):
    """Every modality attends to every other one; self-attention reads the result before the head.

    A single modality attends to itself.

    Blocks have an affine norm and an MLP of ratio 4 with ReLU in every preset.
    """

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Classifies a batch; nothing attends to a missing modality, and it adds zeros."""
        refuse_mixup(mixup)
        style = dataclasses.replace(
            self.config.style, mlp_ratio=4.0, activation="relu", affine_attention_norm=True
        )
        block = dataclasses.replace(BlockConfig.from_model(self.config).dense, style=style)
        tokenized = tokenize(inputs, mask, self.modalities, block)
        tokens = {name: z for name, (z, _) in tokenized.items()}
        masks = {name: present_cls(own) for name, (_, own) in tokenized.items()}
        cross_norm, memory_norm = LayerNorm(name="cross_norm"), LayerNorm(name="memory_norm")
        joined = []
        for i, target in enumerate(tokens):
            own = fold_in(keys, i)
            streams = []
            for j, source in enumerate([name for name in tokens if name != target] or [target]):
                # Named by position, since joined names could collide.
                at = list(tokens).index(source)
                cross = CrossStack(block, self.config.num_pre_layers, name=f"cross_{i}_{at}")
                stream = cross(tokens[target], tokens[source], masks[source], fold_in(own, j))
                streams.append(cross_norm(stream))
            wide = dataclasses.replace(block, embed_dim=len(streams) * block.embed_dim)
            memory = EncoderStack(wide, self.config.num_post_layers, name=f"memory_{i}")
            z = jnp.concatenate(streams, axis=-1)
            z, _ = memory(z, masks[target], fold_in(own, len(tokens)))
            present = masks[target].any(axis=1, keepdims=True)
            joined.append(jnp.where(present, memory_norm(z[:, 0]), 0))
        x = jnp.concatenate(joined, axis=-1)
        width = x.shape[-1]
        x = (
            dense(width, block.dtype, "proj_out")(nn.relu(dense(width, block.dtype, "proj_in")(x)))
            + x
        )
        return Output(Head(self.config.num_classes, name="head")(x), {})
