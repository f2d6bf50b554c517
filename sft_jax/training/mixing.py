"""The mixup of one training step: when there is one, and how it is drawn."""

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
    """Mixup with everything that a configuration leaves to data and devices.

    Attributes:
        mode: `any`, `within` or `fused`.
        alpha: of the Beta distribution.
        warmup_steps: first steps, which blend nothing.
        group_size: consecutive rows of the global batch that find their partners among each other.
        num_modalities: rows of `lam`.
        num_pre_layers: blocks before fusion.
        num_post_layers: blocks after it.
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
            ConfigError: a device (or micro-batch of one) would hold part of a group.
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
    """The draw of a step, by seed, step and position in the global batch.

    Args:
        plan: of the run.
        seed: of the run.
        step: optimizer steps taken so far.
        positions: of whole groups of rows in the global batch, group after group.
        weight: 0 on rows that pad the batch.
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
