"""The trainer: model, optimizer, initial state and compiled steps of a resolved configuration."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from sft_jax.config.run import Config
from sft_jax.models import registry
from sft_jax.models.blocks import gather_in_blocks
from sft_jax.tasks.base import Task
from sft_jax.training.evaluation import compile_eval_step
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.optimizer import Schedule, build_optimizer, learning_rate
from sft_jax.training.randomness import Seed
from sft_jax.training.state import TrainState, abstract_state, create_state, state_initializer
from sft_jax.training.step import ApplyFn, StepConfig, compile_train_step
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Model, schedule and step of a training.

    Attributes:
        config: Resolved configuration.
        task: Task to train for.
        mesh: Mesh of the step; None for a single device.
        model: Model to train.
        schedule: Durations in optimizer steps.
        step: Configuration of the training step.
    """

    config: Config
    task: Task
    mesh: Mesh | None
    model: nn.Module
    schedule: Schedule
    step: StepConfig

    @classmethod
    def of(
        cls, config: Config, task: Task, steps_per_epoch: int, mesh: Mesh | None = None
    ) -> "Trainer":
        """Builds learning rate, optimizer, model, mixup and step.

        Args:
            config: Resolved configuration.
            task: Task to train for.
            steps_per_epoch: Optimizer steps per pass over the training split.
            mesh: Mesh of the step; None for a single device, such as for a run of a study.

        Raises:
            ConfigError: The task does not log `train.best_metric`, or mixup does not fit the mesh.
        """
        check_best_metric(config, task)
        model, schedule = registry.build(config), Schedule.of(config, steps_per_epoch)
        rate = learning_rate(config.optimizer, schedule.total, schedule.warmup)
        step = StepConfig(
            apply=apply_function(model),
            task=task,
            optimizer=build_optimizer(config.optimizer, rate, config.train.freeze),
            schedule=rate,
            augmentation=config.augment,
            accumulate=config.train.accumulate,
            seed=config.train.seed,
            mixup=MixupPlan.of(config, steps_per_epoch, 1 if mesh is None else mesh.size),
            gathering=gather_in_blocks,
        )
        return cls(config=config, task=task, mesh=mesh, model=model, schedule=schedule, step=step)

    def init(self, seed: Seed | None = None) -> TrainState:
        """Draws the first state with the configured seed or another; to be traced."""
        seed = self.config.train.seed if seed is None else seed
        return state_initializer(self.model, self.step.optimizer, seed)()

    def create_state(self) -> tuple[TrainState, TrainState]:
        """Draws the first state on the mesh; also returns its abstract counterpart."""
        return create_state(self.init, self._mesh)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without computing it."""
        return abstract_state(self.init, self._mesh)

    def compile_train_step(self, abstract: TrainState) -> Any:
        """Jits the step: `(state, batch) -> (state, metrics)`; the state is donated."""
        return compile_train_step(self.step, self._mesh, abstract)

    def compile_eval_step(self) -> Any:
        """Jits the evaluation: `(params, batch) -> outputs`, see `evaluation.eval_outputs`."""
        return compile_eval_step(self.step.apply, self.task, self._mesh)

    @property
    def _mesh(self) -> Mesh:
        assert self.mesh is not None  # without a mesh, a trainer only provides its parts
        return self.mesh


def apply_function(model: nn.Module) -> ApplyFn:
    """The model as a pure function `(params, inputs, mask, keys[, mixup]) -> output`."""

    def apply(params, inputs, mask, keys, *mixup):
        return model.apply({"params": params}, inputs, mask, keys, *mixup)

    return apply


def resolve(config: Config, modalities: tuple, output_size: int) -> Config:
    """Completes a configuration with what the data determine.

    Args:
        config: Configuration to complete.
        modalities: Modalities, inferred from the data or checked with them.
        output_size: Number of outputs of the task.

    Raises:
        ConfigError: The configuration states another number of classes than the data.
    """
    if config.model.num_classes not in (0, output_size):
        raise ConfigError(
            f"model.num_classes: given {config.model.num_classes}, expected {output_size} (the "
            "data's); set it to 0 to take it from the data"
        )
    model = dataclasses.replace(config.model, num_classes=output_size)
    config = dataclasses.replace(config, modalities=modalities, model=model)
    registry.build(config)  # an unknown model name fails here, before any work
    return config


def check_best_metric(config: Config, task: Task):
    """Raises `ConfigError` unless the task can validate by the metric that chooses checkpoints."""
    if config.train.best_metric not in task.selectable:
        raise ConfigError(
            f"train.best_metric: given {config.train.best_metric!r}, expected one of "
            f"{', '.join(task.selectable)}, which task {config.task.name!r} validates by; change it"
        )


def count_parameters(params: Any) -> dict[str, int]:
    """Number of parameters of each top-level module, and in `total`."""
    parts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()
    }
    return {**parts, "total": sum(parts.values())}
