"""Parts that every training run is built from."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sft_jax.config.run import Config
from sft_jax.models import registry
from sft_jax.models.blocks import gather_in_blocks
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.optimizer import Schedule
from sft_jax.training.step import ApplyFn, StepConfig
from sft_jax.types import ConfigError

# A process that dies is noticed before; one that prepares large data may take long.
_PATIENCE_MS = 12 * 3600 * 1000


def apply_function(model: nn.Module) -> ApplyFn:
    """The model as a pure function `(params, inputs, mask, keys[, mixup]) -> output`."""

    def apply(params, inputs, mask, keys, *mixup):
        return model.apply({"params": params}, inputs, mask, keys, *mixup)

    return apply


def step_config(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mixup: MixupPlan | None,
) -> StepConfig:
    """The training step of a resolved configuration and what has been built from it."""
    return StepConfig(
        apply=apply_function(model),
        optimizer=optimizer,
        schedule=schedule,
        augmentation=config.augment,
        label_smoothing=config.train.label_smoothing,
        accumulate=config.train.accumulate,
        seed=config.train.seed,
        mixup=mixup,
        gathering=gather_in_blocks,
    )


def resolve(config: Config, modalities: tuple, num_classes: int) -> Config:
    """Fills in what the data decides.

    Args:
        config: as given.
        modalities: specs inferred from or checked against the data.
        num_classes: of the data.

    Raises:
        ConfigError: the configuration says another number of classes than the data.
    """
    if config.model.num_classes not in (0, num_classes):
        raise ConfigError(
            f"model.num_classes: given {config.model.num_classes}, expected {num_classes} (the "
            "data's); set it to 0 to take it from the data"
        )
    model = dataclasses.replace(config.model, num_classes=num_classes)
    config = dataclasses.replace(config, modalities=modalities, model=model)
    registry.build(config)  # an unknown model name fails here, before any work
    return config


def meet(place: str):
    """Waits until all processes are at `place`, a name of its own; nothing for one alone.

    Preparing data takes each its own time, and Gloo gives up connecting after half a minute: so
    they meet before their first collective operation, which then takes place at once.
    """
    ocp.multihost.get_barrier_sync_fn()(key=place, timeout_ms=_PATIENCE_MS)
    multihost_utils.sync_global_devices(place)


def count_parameters(params: Any) -> dict[str, int]:
    """Parameters of each top-level part of a model, and `total`."""
    parts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()
    }
    return {**parts, "total": sum(parts.values())}
