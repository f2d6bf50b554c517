"""Augmentation of wearable sensors (arXiv 1706.00527), on device, one random key per sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from sft_jax.config import AugmentConfig


def random_rotation(key: Key[Array, ""], degrees: float) -> Float[Array, "3 3"]:
    """A rotation about a uniform axis by a uniform angle in `[-degrees, degrees]`."""
    axis_key, angle_key = jax.random.split(key)
    axis = jax.random.normal(axis_key, (3,))
    x, y, z = axis / jnp.linalg.norm(axis)
    angle = jnp.deg2rad(degrees) * jax.random.uniform(angle_key, minval=-1.0, maxval=1.0)
    cross = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # Rodrigues' formula.
    return jnp.eye(3) + jnp.sin(angle) * cross + (1.0 - jnp.cos(angle)) * (cross @ cross)


def augment(
    inputs: dict[str, Num[Array, "b ..."]],
    mask: dict[str, Bool[Array, "b _"]],
    keys: Key[Array, " b"],
    config: AugmentConfig,
) -> dict[str, Num[Array, "b ..."]]:
    """Random rotation of the sensor frame, scaling and jitter; integer inputs pass unchanged.

    Args:
        inputs: `{m: [b, t, f]}`, normalised without turning or moving the axes.
        mask: `{m: [b, t]}`; masked steps stay zero.
        keys: one a sample.
        config: strengths; at zero the inputs come back as they are.
    """

    def one_sample(sample, sample_mask, key):
        rotation = random_rotation(jax.random.fold_in(key, 0), config.rotation_degrees)
        result = {}
        for i, name in enumerate(sorted(sample)):
            x = sample[name]
            if not jnp.issubdtype(x.dtype, jnp.floating):
                result[name] = x
                continue
            if name in config.rotate:
                x = x @ rotation.T
            scale_key, jitter_key = jax.random.split(jax.random.fold_in(key, i + 1))
            if config.scale:
                x = x * (1.0 + config.scale * jax.random.normal(scale_key))
            if config.jitter:
                x = x + config.jitter * jax.random.normal(jitter_key, x.shape)
            result[name] = jnp.where(sample_mask[name][:, None], x, 0)
        return result

    if not (config.rotate or config.scale or config.jitter):
        return inputs
    return jax.vmap(one_sample)(inputs, mask, keys)
