"""The Sparse Fusion Transformer (arXiv 2111.11992, figure 2)."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from sft_jax.config import ModelConfig
from sft_jax.models.layers import (
    BlockConfig,
    EncoderBlock,
    EncoderStack,
    Keys,
    LayerNorm,
    dense,
    fold_in,
)
from sft_jax.models.pooling import Pooled, SparsePooling
from sft_jax.models.tokenizers import Tokenizer, check_inputs
from sft_jax.types import Leaf, ModalitySpec


@flax.struct.dataclass
class Output:
    """What a model returns.

    Attributes:
        logits: `[b, c]` float32.
        pooled: what each modality handed to fusion, by name.
    """

    logits: Leaf
    pooled: dict[str, Pooled]


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
    ) -> Output:
        """Classifies a batch.

        Args:
            inputs: `{m: [b, t, f]}` (`{m: [b, t]}` ids for token modalities), in any order.
            mask: `{m: [b, t]}`, true = real. A modality without a real step is left out.
            keys: one random key a sample for dropout; None evaluates.

        Raises:
            ValueError: names or shapes that differ from `modalities`.
        """
        check_inputs(inputs, mask, self.modalities)
        block = BlockConfig.from_model(self.config)
        cls, tokens, token_masks, pooled = 0.0, [], [], {}
        for i, spec in enumerate(self.modalities):
            encoder = ModalityEncoder(spec, self.config, name=f"encoder_{spec.name}")
            own_cls, kept = encoder(inputs[spec.name], mask[spec.name], fold_in(keys, i))
            present = mask[spec.name].any(axis=1, keepdims=True)
            cls = cls + jnp.where(present, own_cls, 0)
            tokens.append(kept.tokens)
            token_masks.append(kept.mask)
            pooled[spec.name] = kept
        z = jnp.concatenate([cls[:, None], *tokens], axis=1)  # [b, n, d]
        fused_mask = jnp.concatenate([jnp.ones_like(token_masks[0][:, :1]), *token_masks], axis=1)
        stack = EncoderStack(block, self.config.num_post_layers, name="fusion")
        z = stack(z, fused_mask, fold_in(keys, len(self.modalities)))
        return Output(Head(self.config.num_classes, name="head")(z[:, 0]), pooled)


class ModalityEncoder(nn.Module):
    """Tokenizer, `num_pre_layers` blocks and the sparse-pooling block of one modality."""

    spec: ModalitySpec
    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Num[Array, "b ..."], mask: Bool[Array, "b t"], keys: Keys | None
    ) -> tuple[Float[Array, "b d"], Pooled]:
        """Returns CLS and the pooled tokens."""
        block = BlockConfig.from_model(self.config)
        tokenizer = Tokenizer(self.spec, self.config.embed_dim, block, name="tokenizer")
        z, token_mask = tokenizer(x, mask)
        for i in range(self.config.num_pre_layers):
            z = EncoderBlock(block, name=f"block_{i}")(z, token_mask, fold_in(keys, i))
        pooling = SparsePooling(self.spec, block, name="pooling")
        return pooling(z, token_mask, fold_in(keys, self.config.num_pre_layers))


class Head(nn.Module):
    """Layer norm and a linear layer, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, cls: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the classes."""
        normed = LayerNorm(name="norm")(cls.astype(jnp.float32))
        return dense(self.num_classes, jnp.dtype("float32"), "linear")(normed)
