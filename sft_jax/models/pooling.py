"""The sparse-pooling block (arXiv 2111.11992, section 3.2)."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from sft_jax.models.layers import AttentionResidual, BlockConfig, Keys, fold_in
from sft_jax.models.pools import POOL_FUNCTIONS, Pooled, as_pooled, choose_top, saliency_weights
from sft_jax.types import SALIENCY_POOLS, ModalitySpec


class SparsePooling(nn.Module):
    """One more attention residual, without MLP, then the pool."""

    spec: ModalitySpec
    config: BlockConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t d"], mask: Bool[Array, "b t"], keys: Keys | None
    ) -> tuple[Float[Array, "b d"], Pooled]:
        """From tokens with CLS in front to CLS and the pooled rest."""
        attention = AttentionResidual(self.config, name="attention")
        if self.spec.pool == "cls_topk":
            return self._cls_topk(attention, z, mask, keys)
        weights = None
        if self.spec.pool in SALIENCY_POOLS:
            weights = saliency_weights(mask[:, 1:])
        z, saliency = attention(z, mask, fold_in(keys, 0), weights)
        saliency = None if saliency is None else saliency[:, 1:]
        pool = POOL_FUNCTIONS[self.spec.pool]
        return z[:, 0], pool(z[:, 1:], mask[:, 1:], saliency, fold_in(keys, 1), self.spec)

    def _cls_topk(self, attention, z, mask, keys):
        """Ranks by the CLS query's row; only CLS and the kept tokens are ever queries."""
        real = mask[:, 1:]

        def choose(row):
            return choose_top(row, real, self.spec.count)

        kept, indices, row = attention.of_chosen(z, mask, fold_in(keys, 0), choose)
        return kept[:, 0], as_pooled(kept[:, 1:], real, indices, row)
