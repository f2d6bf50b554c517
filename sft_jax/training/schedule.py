"""When things happen in a training run, in optimizer steps."""

import dataclasses

from sft_jax.config.run import Config


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
        """The configuration's durations, counted in steps."""
        train = config.train
        return cls(
            total=train.duration.to_steps(steps_per_epoch),
            warmup=config.optimizer.warmup.to_steps(steps_per_epoch),
            eval_every=train.eval_every.to_steps(steps_per_epoch),
            checkpoint_every=train.checkpoint_every.to_steps(steps_per_epoch),
            best_after=train.best_after.to_steps(steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
        )
