"""Losses of the tasks (SPEC 5.1), in float32: `(loss [b], count [b])` of each sample.

The loss of a batch is `sum(loss) / sum(count)`. A NaN target is unknown: it adds nothing to either,
and its gradient is 0. Letters: `b` batch, `c` classes or labels, `r` outputs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

Losses = tuple[Float[Array, " b"], Float[Array, " b"]]


def cross_entropy(
    logits: Float[Array, "b c"],
    target: Num[Array, "b *c"],
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Array, " c"] | None = None,
    focal_gamma: float = 0.0,
) -> Losses:
    """Softmax cross-entropy in nats.

    Args:
        logits: Unnormalised scores.
        target: Class of each sample `[b]`, or a distribution over the classes `[b, c]`.
        label_smoothing: Probability that is spread evenly over all classes.
        class_weights: Weight of each class, in the loss and in the count. Smoothing weighs every
            class by its own weight in the loss, and leaves the count to the target alone.
        focal_gamma: Exponent of `(1 - p)`, `p` being the probability of the target (focal loss,
            arXiv 1708.02002).
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    num_classes = logits.shape[-1]
    if target.ndim == 1:
        target = jax.nn.one_hot(target, num_classes, dtype=jnp.float32)
    weights = jnp.ones(num_classes, jnp.float32) if class_weights is None else class_weights
    smooth = (1.0 - label_smoothing) * target + label_smoothing / num_classes
    losses = -jnp.sum(weights * smooth * log_probabilities, axis=-1)
    if focal_gamma:
        probability = jnp.sum(target * jnp.exp(log_probabilities), axis=-1)
        # Rounding may take p above 1, where a fractional power is NaN.
        losses = jnp.clip(1.0 - probability, 1e-12) ** focal_gamma * losses
    return losses, jnp.sum(weights * target, axis=-1)


def binary_cross_entropy(
    logits: Float[Array, "b c"],
    target: Float[Array, "b c"],
    *,
    pos_weight: Float[Array, " c"] | None = None,
    focal_gamma: float = 0.0,
    focal_alpha: float | None = None,
) -> Losses:
    """Binary cross-entropy of every label in nats, summed over the known ones.

    Args:
        logits: Unnormalised scores.
        target: 1, 0, or NaN where unknown.
        pos_weight: Factor on the term of positives, by label.
        focal_gamma: Exponent of `(1 - p_t)` (focal loss, arXiv 1708.02002).
        focal_alpha: Factor on positives, and 1 minus it on negatives; None for neither.
    """
    logits = logits.astype(jnp.float32)
    known = ~jnp.isnan(target)
    truth = jnp.where(known, target, 0.0).astype(jnp.float32)
    positive, negative = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    if focal_gamma:
        positive *= jax.nn.sigmoid(-logits) ** focal_gamma
        negative *= jax.nn.sigmoid(logits) ** focal_gamma
    if focal_alpha is not None:
        positive, negative = focal_alpha * positive, (1.0 - focal_alpha) * negative
    if pos_weight is not None:
        positive = pos_weight * positive
    losses = truth * positive + (1.0 - truth) * negative
    return jnp.sum(jnp.where(known, losses, 0.0), axis=-1), _number(known)


def regression(
    outputs: Float[Array, "b r"],
    target: Float[Array, "b r"],
    element: Callable[[Float[Array, "b r"]], Float[Array, "b r"]],
) -> Losses:
    """`element` of the error, such as `absolute`, summed over the known outputs."""
    known = ~jnp.isnan(target)
    error = jnp.where(known, outputs.astype(jnp.float32) - jnp.where(known, target, 0.0), 0.0)
    return jnp.sum(jnp.where(known, element(error), 0.0), axis=-1), _number(known)


def absolute(error: Float[Array, "..."]) -> Float[Array, "..."]:
    """`|error|`, with gradient 0 at 0, where that of `jnp.abs` is 1."""
    return error * jnp.sign(error)


def huber(error: Float[Array, "..."], delta: float = 1.0) -> Float[Array, "..."]:
    """`error^2 / 2` up to `delta`, then a straight line (Huber, 1964)."""
    size = absolute(error)
    inside = jnp.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def _number(known: Array) -> Float[Array, " b"]:
    return known.sum(axis=-1).astype(jnp.float32)
