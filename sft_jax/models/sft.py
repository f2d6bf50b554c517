"""The Sparse Fusion Transformer (arXiv 2111.11992, figure 2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.config.run import ModelConfig
from sft_jax.models.blocks import make_block
from sft_jax.models.layers import BlockConfig, EncoderBlock, EncoderStack, Keys, fold_in
from sft_jax.models.mixup import Mixer, Mixup, mixer
from sft_jax.models.output import Head, Output
from sft_jax.models.pooling import SparsePooling
from sft_jax.models.pools import Pooled
from sft_jax.models.tokenizers import Tokenizer, check_inputs
from sft_jax.types import ModalitySpec


class SparseFusionTransformer(nn.Module):
    """Each modality through blocks of its own and a pool, then one transformer over what is left.

    Attributes:
        modalities: what comes in; their order is the order of the fused sequence.
        config: widths, depths and preset.
    """

    modalities: tuple[ModalitySpec, ...]
    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Num[Array, "b ..."]],
        mask: dict[str, Bool[Array, "b _"]],
        keys: Keys | None = None,
        mixup: Mixup | None = None,
    ) -> Output:
        """Classifies a batch.

        Args:
            inputs: `{m: [b, t, f]}` (`{m: [b, t]}` ids for token modalities), in any order.
            mask: `{m: [b, t]}`, true = real. A modality without a real step is left out.
            keys: one random key a sample for dropout and pools that draw; None evaluates.
            mixup: blends samples inside the network; None does not.

        Raises:
            ValueError: names or shapes that differ from `modalities`.
        """
        check_inputs(inputs, mask, self.modalities)
        pre, post = self.config.num_pre_layers, self.config.num_post_layers
        cls: Any = 0.0
        tokens, token_masks, pooled = [], [], {}
        for i, spec in enumerate(self.modalities):
            encoder = ModalityEncoder(spec, self.config, name=f"encoder_{spec.name}")
            own_cls, kept = encoder(
                inputs[spec.name],
                mask[spec.name],
                fold_in(keys, i),
                mixer(mixup, modality=i, first=0),
            )
            # A real token always fills a slot, so empty slots alone mean a missing modality.
            cls = cls + jnp.where(kept.mask.any(axis=1, keepdims=True), own_cls, 0)
            tokens.append(kept.tokens)
            token_masks.append(kept.mask)
            pooled[spec.name] = kept
        z = jnp.concatenate([cls[:, None], *tokens], axis=1)  # [b, n, d]
        fused_mask = jnp.concatenate([jnp.ones_like(token_masks[0][:, :1]), *token_masks], axis=1)
        stack = EncoderStack(BlockConfig.from_model(self.config).dense, post, name="fusion")
        keys = fold_in(keys, len(self.modalities))
        z, _ = stack(z, fused_mask, keys, mixer(mixup, modality=0, first=pre))
        return Output(Head(self.config.num_classes, name="head")(z[:, 0]), pooled)


class ModalityEncoder(nn.Module):
    """Tokenizer, `num_pre_layers` blocks and the sparse-pooling block of one modality."""

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
        """Returns CLS and the pooled tokens."""
        block = BlockConfig.from_model(self.config)
        z, token_mask = Tokenizer(self.spec, block, name="tokenizer")(x, mask)
        for i in range(self.config.num_pre_layers):
            encoder = make_block(self, EncoderBlock, block, name=f"block_{i}")
            z = encoder(z, token_mask, fold_in(keys, i))
            if mixer is not None:
                z, token_mask = mixer(z, token_mask, i)
        pooling = make_block(self, SparsePooling, self.spec, block, name="pooling")
        return pooling(z, token_mask, fold_in(keys, self.config.num_pre_layers))
