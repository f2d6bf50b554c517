"""The sparse-pooling block (arXiv 2111.11992, section 3.2)."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from sft_jax.config.modality import POOLS, ModalitySpec
from sft_jax.models.layers import AttentionResidual, BlockConfig, Keys, Layer, fold_in
from sft_jax.models.pools import (
    POOL_FUNCTIONS,
    QUERY_SELECTIONS,
    Pooled,
    as_pooled,
    saliency_weights,
)


class SparsePooling(Layer):
    """An attention residual without an MLP, followed by the pool of the modality.

    A pool that selects queries chooses its tokens before attention is computed: then only CLS and
    the kept tokens attend to the sequence, which costs O(k t) instead of O(t^2).
    """

    spec: ModalitySpec
    config: BlockConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], mask: Bool[Array, "b t"], keys: Keys | None
    ) -> tuple[Float[Array, "b d"], Pooled]:
        """Computes CLS and the pooled tokens of a sequence that begins with CLS."""
        attention = AttentionResidual(self.config, name="attention")
        pool, token_mask = self.spec.pool, mask[:, 1:]
        if POOLS[pool].selects_queries:

            def select(cls_attention):
                return QUERY_SELECTIONS[pool](z[:, 1:], token_mask, cls_attention, self.spec)

            kept, indices, saliency = attention.attend_from(z, mask, fold_in(keys, 0), select)
            return kept[:, 0], as_pooled(kept[:, 1:], token_mask, indices, saliency)
        weights = saliency_weights(token_mask) if POOLS[pool].saliency else None
        z, saliency = attention(z, mask, fold_in(keys, 0), weights)
        saliency = None if saliency is None else saliency[:, 1:]
        pooled = POOL_FUNCTIONS[pool](z[:, 1:], token_mask, saliency, fold_in(keys, 1), self.spec)
        return z[:, 0], pooled
