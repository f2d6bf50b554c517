"""Settings that have no effect in the run they are given for."""

from collections.abc import Iterator

from sft_jax.config.io import to_dict
from sft_jax.config.run import Config, MixupConfig, OptimizerConfig, TrainConfig
from sft_jax.training.optimizer import Schedule


def unused_settings(config: Config, schedule: Schedule, validates: bool) -> list[str]:
    """Describes each setting without an effect, and what to change, in a line.

    These are warnings rather than errors, since the steps per epoch depend on the data.

    Args:
        config: Resolved configuration.
        schedule: Its durations in optimizer steps.
        validates: Whether there is a validation split.
    """
    return [
        *_check_optimizer(config, schedule, validates),
        *_check_mixup(config, schedule),
        *_check_validation(config, schedule, validates),
        *_check_augmentation(config),
    ]


def unused_checkpoints(config: Config, schedule: Schedule) -> list[str]:
    """The same for `train.checkpoint_every`, which a sweep does not use."""
    every = config.train.checkpoint_every
    if every == TrainConfig.checkpoint_every or schedule.checkpoint_every <= schedule.total:
        return []
    return [
        f"train.checkpoint_every: given {to_dict(every)} ({schedule.checkpoint_every} steps) for "
        f"{schedule.total} steps of training, which saves only at the end, so that a run that is "
        "killed begins again; lower it"
    ]


def _check_optimizer(config: Config, schedule: Schedule, validates: bool) -> Iterator[str]:
    optimizer, total = config.optimizer, schedule.total
    warmup = optimizer.warmup.to_steps(schedule.steps_per_epoch)
    if warmup > total:
        yield (
            f"optimizer.warmup: given {to_dict(optimizer.warmup)} ({warmup} steps) for {total} "
            "steps of training, so that the learning rate never reaches optimizer.learning_rate; "
            "shorten it or train longer"
        )
    if optimizer.schedule == "cosine" and warmup >= total:
        yield (
            f"optimizer.schedule: given 'cosine' with a warm-up of {warmup} of {total} steps, so "
            "that the learning rate never falls; shorten optimizer.warmup or train longer"
        )
    if optimizer.schedule != "plateau":
        changed = [
            name
            for name in ("plateau_factor", "plateau_patience")
            if getattr(optimizer, name) != getattr(OptimizerConfig, name)
        ]
        if changed:
            yield (
                f"optimizer.{', optimizer.'.join(changed)}: given with schedule "
                f"{optimizer.schedule!r}, which does not use it; leave it out or set "
                "schedule='plateau'"
            )
    elif validates:
        # The first validation sets the best, and one at the end comes too late.
        validations, needed = (total - 1) // schedule.eval_every, optimizer.plateau_patience + 2
        if validations < needed:
            yield (
                f"optimizer.plateau_patience: given {optimizer.plateau_patience} for {validations} "
                f"validations before the end, of which a reduction needs {needed}, so that the "
                "learning rate is never reduced; lower it, validate more often or train longer"
            )


def _check_mixup(config: Config, schedule: Schedule) -> Iterator[str]:
    mixup = config.mixup
    warmup = mixup.warmup.to_steps(schedule.steps_per_epoch)
    if mixup.mode == "none":
        changed = [
            name
            for name in ("alpha", "warmup", "groups")
            if getattr(mixup, name) != getattr(MixupConfig, name)
        ]
        if changed:
            yield (
                f"mixup.{', mixup.'.join(changed)}: given with mode 'none', which blends nothing; "
                "leave it out or choose another mode"
            )
    elif warmup >= schedule.total:
        yield (
            f"mixup.warmup: given {to_dict(mixup.warmup)} ({warmup} steps) for {schedule.total} "
            "steps of training, so that nothing is ever blended; shorten it or train longer"
        )


def _check_validation(config: Config, schedule: Schedule, validates: bool) -> Iterator[str]:
    train, total = config.train, schedule.total
    after = f"train.best_after: given {to_dict(train.best_after)}"
    if not validates:
        if schedule.best_after:
            yield (
                f"{after} for data without a validation split, so that the last parameters are "
                "taken all the same; leave it out or hold samples out in data.options"
            )
        if train.patience:
            yield (
                f"train.patience: given {train.patience} for data without a validation split, so "
                "that training never stops early; leave it out or hold samples out in data.options"
            )
        return
    if schedule.best_after > total:
        yield (
            f"{after} ({schedule.best_after} steps) for {total} steps of training, so that no best "
            "parameters are chosen and the last ones are taken; lower it or train longer"
        )
    if train.eval_every != TrainConfig.eval_every and schedule.eval_every > total:
        yield (
            f"train.eval_every: given {to_dict(train.eval_every)} ({schedule.eval_every} steps) "
            f"for {total} steps of training, so that only the end is validated; lower it or train "
            "longer"
        )

    # The first validation that counts sets the best, and one at the end comes too late.
    before = (max(schedule.best_after, 1) - 1) // schedule.eval_every
    validations = max(0, (total - 1) // schedule.eval_every - before)
    if train.patience and validations < train.patience + 1:
        yield (
            f"train.patience: given {train.patience} for {validations} validations from "
            f"train.best_after to before the end, of which stopping early needs "
            f"{train.patience + 1}, so that training never stops early; lower it, validate more "
            "often or train longer"
        )


def _check_augmentation(config: Config) -> Iterator[str]:
    if config.augment.hide and len(config.modalities) == 1:
        yield (
            f"augment.hide: given {config.augment.hide} for a single modality, which is never "
            "hidden; leave it out"
        )
