"""AdamW, its learning rate over time, and the reduction on a plateau."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.run import OptimizerConfig

# Learning rate by optimizer step.
LearningRate = Callable[[jax.Array | int], jax.Array]


def learning_rate(config: OptimizerConfig, total_steps: int, warmup_steps: int) -> LearningRate:
    """Learning rate by optimizer step: linear warm-up, then constant or cosine to zero.

    `plateau` is constant here; the loop multiplies by `Plateau.scale`.
    """

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        factor = jnp.minimum(1.0, (step + 1.0) / max(1, warmup_steps))
        if config.schedule == "cosine":
            progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            factor = factor * 0.5 * (1.0 + jnp.cos(math.pi * jnp.clip(progress, 0.0, 1.0)))
        return config.learning_rate * factor

    return schedule


def build_optimizer(
    config: OptimizerConfig, schedule: LearningRate
) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with decay on kernels and embeddings only."""

    def decayed(params):
        def is_weight(path, _):
            return any(word in str(path[-1]) for word in ("kernel", "embedding"))

        return jax.tree_util.tree_map_with_path(is_weight, params)

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decayed if config.weight_decay else None,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Reduction of the learning rate when the validation loss stops falling.

    Attributes:
        scale: factor on the learning rate so far.
        best: lowest validation loss seen.
        stale: validations since then, or since the last reduction.
    """

    scale: float = 1.0
    best: float = math.inf
    stale: int = 0

    def update(self, loss: float, config: OptimizerConfig) -> "Plateau":
        """The state after one more validation; an improvement of 1e-4 of the loss counts."""
        if loss < self.best * (1.0 - 1e-4) or (math.isinf(self.best) and math.isfinite(loss)):
            return Plateau(self.scale, loss, 0)
        if self.stale + 1 > config.plateau_patience:
            return Plateau(self.scale * config.plateau_factor, self.best, 0)
        return Plateau(self.scale, self.best, self.stale + 1)
