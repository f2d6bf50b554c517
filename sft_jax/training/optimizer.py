"""AdamW, its learning rate over time, and the durations of a run in optimizer steps."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.run import Config, OptimizerConfig

# Learning rate by optimizer step.
LearningRate = Callable[[jax.Array | int], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Durations of a run in optimizer steps.

    Attributes:
        total: Length of training.
        warmup: Warm-up of the learning rate.
        eval_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        best_after: Step before which the best checkpoint is not chosen.
        steps_per_epoch: Steps of one pass over the training split.
    """

    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    best_after: int
    steps_per_epoch: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Schedule":
        """Converts the durations of a configuration to steps."""
        train = config.train
        return cls(
            total=train.duration.to_steps(steps_per_epoch),
            warmup=config.optimizer.warmup.to_steps(steps_per_epoch),
            eval_every=train.eval_every.to_steps(steps_per_epoch),
            checkpoint_every=train.checkpoint_every.to_steps(steps_per_epoch),
            best_after=train.best_after.to_steps(steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
        )


def learning_rate(config: OptimizerConfig, total_steps: int, warmup_steps: int) -> LearningRate:
    """Learning rate by optimizer step: linear warm-up, then constant or cosine to zero.

    With `plateau` it stays constant, and the loop scales it by `Plateau.scale`.
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
    """Global-norm clipping, followed by AdamW with weight decay on kernels and embeddings only."""

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
        scale: Current factor on the learning rate.
        best: Lowest validation loss so far.
        stale: Number of validations since that loss or the last reduction.
    """

    scale: float = 1.0
    best: float = math.inf
    stale: int = 0

    def update(self, loss: float, config: OptimizerConfig) -> "Plateau":
        """The state after one more validation; the loss must fall by a factor of 1e-4 to count."""
        if loss < self.best * (1.0 - 1e-4) or (math.isinf(self.best) and math.isfinite(loss)):
            return Plateau(self.scale, loss, 0)
        if self.stale + 1 > config.plateau_patience:
            return Plateau(self.scale * config.plateau_factor, self.best, 0)
        return Plateau(self.scale, self.best, self.stale + 1)
