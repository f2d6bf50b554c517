"""Losses per sample; whoever calls weighs and sums them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b c"], label: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Softmax cross-entropy in nats, in float32.

    Args:
        logits: unnormalised scores.
        label: class of each sample.
        label_smoothing: share of the target spread evenly over all classes.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = jax.nn.one_hot(label, logits.shape[-1])
    target = (1.0 - label_smoothing) * target + label_smoothing / logits.shape[-1]
    return -jnp.sum(target * log_probabilities, axis=-1)


def mixed_cross_entropy(
    logits: Float[Array, "b c"],
    label: Int[Array, " b"],
    partner_label: Int[Array, " b"],
    share: Float[Array, " b"],
    label_smoothing: float = 0.0,
) -> Float[Array, " b"]:
    """Loss of blended samples: `share CE(label) + (1 - share) CE(partner_label)` (mixup)."""
    own = cross_entropy(logits, label, label_smoothing)
    other = cross_entropy(logits, partner_label, label_smoothing)
    return share * own + (1 - share) * other
