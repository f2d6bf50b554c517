"""AdamW, its learning rate over time, and the durations of a run in optimizer steps."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sft_jax.config.run import Config, OptimizerConfig
from sft_jax.types import ConfigError

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
    config: OptimizerConfig, schedule: LearningRate, freeze: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Global-norm clipping, followed by AdamW with weight decay on kernels and embeddings only.

    Frozen parameters count neither for the norm nor in the updates. Initialising the optimizer
    raises `ConfigError` if a pattern matches no parameter.

    Args:
        config: Settings of the optimizer.
        schedule: Learning rate by optimizer step.
        freeze: Patterns of the parameters that are not trained.
    """

    def decayed(params):
        def is_weight(path, _):
            return any(word in str(path[-1]) for word in ("kernel", "embedding"))

        return jax.tree_util.tree_map_with_path(is_weight, params)

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=decayed if config.weight_decay else None,
    )
    frozen = [(pattern, 0.0) for pattern in freeze]
    # Without these settings the state keeps the layout of stored checkpoints.
    before = [_scale_by_path("train.freeze", frozen)] if frozen else []
    after = list(before)
    if config.rates:
        after.append(_scale_by_path("optimizer.rates", config.rate_factors))
    return optax.chain(*before, clip, adamw, *after)


def _scale_by_path(
    setting: str, factors: Sequence[tuple[str, float]]
) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the first pattern that matches their path.

    Args:
        setting: Name of the setting that the patterns come from, for the error.
        factors: Patterns with their factors.
    """

    def name(path) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    def init(params):
        names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in factors:
            if not any(fnmatch.fnmatchcase(each, pattern) for each in names):
                tops = sorted({each.split("/")[0] for each in names})
                raise ConfigError(
                    f"{setting}: given {pattern!r}, which matches no parameter, expected a pattern "
                    f"of paths that begin with one of {', '.join(tops)}, such as '{tops[0]}/*'"
                )
        return optax.EmptyState()

    def scale(path, update):
        matching = (f for pattern, f in factors if fnmatch.fnmatchcase(name(path), pattern))
        factor = next(matching, 1.0)
        # Zero even where the update is not finite.
        return update * factor if factor else jnp.zeros_like(update)

    def update(updates: Any, state: Any, params: Any = None):
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


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
