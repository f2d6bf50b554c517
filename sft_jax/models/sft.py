"""The Sparse Fusion Transformer (arXiv 2111.11992, figure 2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ModelConfig
from sft_jax.models.base import FusionModel, Head, Output
from sft_jax.models.blocks import make_block
from sft_jax.models.layers import BlockConfig, EncoderBlock, EncoderStack, Keys, fold_in
from sft_jax.models.mixup import Mixer, Mixup, mixer
from sft_jax.models.pooling import SparsePooling
from sft_jax.models.pools import Pooled
from sft_jax.models.tokenizers import Tokenizer, check_inputs, with_cls


class SparseFusionTransformer(FusionModel):
    """Encodes and pools each modality, then fuses the remaining tokens in one transformer."""

    supports_mixup = True
    supports_fixed_attention = True

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """See `Model.__call__`."""
        check_inputs(inputs, mask, self.modalities)
        pre, post = self.config.num_pre_layers, self.config.num_post_layers
        cls: Any = 0.0
        pooled = {}
        for i, spec in enumerate(self.modalities):
            modality_cls, tokens = ModalityEncoder(spec, self.config, name=f"encoder_{spec.name}")(
                inputs[spec.name],
                mask[spec.name],
                fold_in(keys, i),
                mixer(mixup, modality=i, first=0),
            )
            # A real token always fills a slot, so only a missing modality has empty slots alone.
            cls = cls + jnp.where(tokens.mask.any(axis=1, keepdims=True), modality_cls, 0)
            pooled[spec.name] = tokens
        # [b, 1, d], [b, k_1, d], [b, k_2, d], ... -> [b, n, d]
        z = jnp.concatenate([cls[:, None], *(part.tokens for part in pooled.values())], axis=1)
        fused_mask = with_cls(jnp.concatenate([part.mask for part in pooled.values()], axis=1))
        stack = EncoderStack(BlockConfig.from_model(self.config).dense, post, name="fusion")
        keys = fold_in(keys, len(self.modalities))
        z, _ = stack(z, fused_mask, keys, mixer(mixup, modality=0, first=pre))
        return Output(Head(self.config.num_classes, name="head")(z[:, 0]), pooled)


class ModalityEncoder(nn.Module):
    """Tokenizer, `num_pre_layers` encoder blocks and sparse-pooling block of one modality."""

    spec: ModalitySpec
    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Num[Array, "b ..."],
        mask: Bool[Array, "b t"],
        keys: Keys | None,
        mixer: Mixer | None = None,
    ) -> tuple[Float[Array, "b d"], Pooled]:
        """Computes CLS and the pooled tokens."""
        block = BlockConfig.from_model(self.config)
        z, token_mask = Tokenizer(self.spec, block, name="tokenizer")(x, mask)
        for i in range(self.config.num_pre_layers):
            encoder = make_block(self, EncoderBlock, block, name=f"block_{i}")
            z = encoder(z, token_mask, fold_in(keys, i))
            if mixer is not None:
                z, token_mask = mixer(z, token_mask, i)
        pooling = make_block(self, SparsePooling, self.spec, block, name="pooling")
        return pooling(z, token_mask, fold_in(keys, self.config.num_pre_layers))
