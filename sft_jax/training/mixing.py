"""Mixup of a training step: its plan, and the random draw of each step."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.config.run import Config
from sft_jax.models.mixup import Mixup, draw_depth, draw_lam, draw_partners
from sft_jax.training.randomness import Seed, sample_keys, step_key
from sft_jax.types import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixupPlan:
    """Mixup settings resolved for the data and the devices.

    Attributes:
        mode: `any`, `within` or `fused`.
        alpha: Parameter of the Beta distribution.
        warmup_steps: Number of first steps without mixup.
        group_size: Consecutive rows of the global batch that are partners of each other.
        num_modalities: Number of modalities, the rows of `lam`.
        num_pre_layers: Number of blocks before fusion.
        num_post_layers: Number of blocks after fusion.
    """

    mode: str
    alpha: float
    warmup_steps: int
    group_size: int
    num_modalities: int
    num_pre_layers: int
    num_post_layers: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int, num_devices: int) -> "MixupPlan | None":
        """The plan of a resolved configuration; None without mixup.

        Raises:
            ConfigError: A device or micro-batch would hold only part of a group.
        """
        mixup, train = config.mixup, config.train
        if mixup.mode == "none":
            return None
        if mixup.groups % (num_devices * train.accumulate):
            raise ConfigError(
                f"mixup.groups: given {mixup.groups} for {num_devices} devices and accumulate "
                f"{train.accumulate}, expected a multiple of their product, so that no sample's "
                "partner is on another device; choose one that also divides the batch size"
            )
        return cls(
            mode=mixup.mode,
            alpha=mixup.alpha,
            warmup_steps=mixup.warmup.to_steps(steps_per_epoch),
            group_size=train.batch_size // mixup.groups,
            num_modalities=len(config.modalities),
            num_pre_layers=config.model.num_pre_layers,
            num_post_layers=config.model.num_post_layers,
        )


def draw_mixup(
    plan: MixupPlan,
    seed: Seed,
    step: jax.Array,
    positions: Int[Array, " b"],
    weight: Float[Array, " b"],
) -> Mixup:
    """Draws the mixup of a step from seed, step and position in the global batch.

    Args:
        plan: Plan of the run.
        seed: Seed of the run.
        step: Optimizer steps taken so far.
        positions: Positions of rows in the global batch, in complete groups.
        weight: Weight of each row, 0 on padding rows.
    """
    depth = draw_depth(
        step_key(seed, step, "mixup depth"), plan.mode, plan.num_pre_layers, plan.num_post_layers
    )
    groups = positions[:: plan.group_size] // plan.group_size
    return Mixup(
        depth=jnp.where(step < plan.warmup_steps, -1, depth),
        lam=draw_lam(
            sample_keys(seed, step, "mixup lam", positions), plan.num_modalities, plan.alpha
        ),
        partner=draw_partners(
            sample_keys(seed, step, "mixup partner", groups), plan.group_size, weight
        ),
    )
