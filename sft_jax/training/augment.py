"""Augmentation of wearable sensors (arXiv 1706.00527), on device, one random key per sample."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from sft_jax.config.run import AugmentConfig

# Streams of keys beside those of rotation (0) and of the modalities (1 on).
_MIRROR, _HIDE = 1000, 1001


def random_rotation(key: Key[Array, ""], degrees: float) -> Float[Array, "3 3"]:
    """A rotation about a uniform axis by a uniform angle in `[-degrees, degrees]`."""
    axis_key, angle_key = jax.random.split(key)
    axis = jax.random.normal(axis_key, (3,), jnp.float32)
    x, y, z = axis / jnp.linalg.norm(axis)
    turn = jax.random.uniform(angle_key, (), jnp.float32, minval=-1.0, maxval=1.0)
    angle = math.radians(degrees) * turn
    cross = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], jnp.float32)
    # Rodrigues' formula.
    identity = jnp.eye(3, dtype=jnp.float32)
    return identity + jnp.sin(angle) * cross + (1.0 - jnp.cos(angle)) * (cross @ cross)


def augment(
    inputs: dict[str, Num[Array, "b ..."]],
    mask: dict[str, Bool[Array, "b _"]],
    keys: Key[Array, " b"],
    config: AugmentConfig,
) -> dict[str, Num[Array, "b ..."]]:
    """Random reflection and rotation of the sensor frame, scaling and jitter.

    Integer inputs pass unchanged.

    Args:
        inputs: `{m: [b, t, f]}`, normalised without turning or moving the axes.
        mask: `{m: [b, t]}`; masked steps stay zero.
        keys: one a sample.
        config: strengths; at zero the inputs come back as they are.
    """
    axes = jnp.array([-1.0, 1.0, 1.0], jnp.float32)
    signs = dict.fromkeys(config.mirror_polar, axes)
    signs |= dict.fromkeys(config.mirror_axial, -axes)

    def one_sample(sample, sample_mask, key):
        mirror_key = jax.random.fold_in(key, _MIRROR)
        mirrored = jax.random.bernoulli(mirror_key, jnp.float32(0.5)) if signs else False
        rotation = random_rotation(jax.random.fold_in(key, 0), config.rotation_degrees)
        result = {}
        for i, name in enumerate(sorted(sample)):
            x = sample[name]
            if not jnp.issubdtype(x.dtype, jnp.floating):
                result[name] = x
                continue
            if name in signs:
                x = jnp.where(mirrored, signs[name] * x, x)
            if name in config.rotate:
                x = x @ rotation.T
            scale_key, jitter_key = jax.random.split(jax.random.fold_in(key, i + 1))
            if config.scale:
                x = x * (1.0 + config.scale * jax.random.normal(scale_key, (), jnp.float32))
            if config.jitter:
                x = x + config.jitter * jax.random.normal(jitter_key, x.shape, jnp.float32)
            result[name] = jnp.where(sample_mask[name][:, None], x, 0)
        return result

    if not (config.rotate or config.scale or config.jitter or signs):
        return inputs
    return jax.vmap(one_sample)(inputs, mask, keys)


def hide(
    inputs: dict[str, Num[Array, "b ..."]],
    mask: dict[str, Bool[Array, "b _"]],
    keys: Key[Array, " b"],
    config: AugmentConfig,
) -> tuple[dict[str, Num[Array, "b ..."]], dict[str, Bool[Array, "b _"]]]:
    """Masks whole modalities, and stretches of those that are left, at random.

    Arguments are those of `augment`. A sample keeps at least one modality that it has, and of each
    that it keeps at least one step.

    Returns:
        Inputs, zero where masked, and masks.
    """
    names = sorted(inputs)

    def one_sample(sample, sample_mask, key):
        chance_key, place_key = jax.random.split(jax.random.fold_in(key, _HIDE))
        there = jnp.stack([sample_mask[name].any() for name in names])
        draws = jax.random.uniform(chance_key, (len(names),), jnp.float32)
        draws = jnp.where(there, draws, -1.0)
        stays = (draws >= config.hide) | (jnp.arange(len(names)) == draws.argmax())
        inputs, mask = {}, {}
        for i, name in enumerate(names):
            place = jax.random.uniform(jax.random.fold_in(place_key, i), (2,), jnp.float32)
            kept = sample_mask[name] & stays[i] & ~_stretch(sample_mask[name], config.gap, place)
            x = sample[name]
            blank = jnp.zeros((), x.dtype)
            inputs[name] = jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, blank)
            mask[name] = kept
        return inputs, mask

    if not (config.hide or config.gap):
        return inputs, mask
    return jax.vmap(one_sample)(inputs, mask, keys)


def _stretch(
    real: Bool[Array, " t"], longest: float, place: Float[Array, " 2"]
) -> Bool[Array, " t"]:
    """A stretch of a uniform share of the real steps, at most `longest` of them and never all."""
    count = real.sum()
    size = jnp.minimum(jnp.floor(longest * place[0] * (count + 1)), jnp.maximum(count - 1, 0))
    start = jnp.floor(place[1] * (count - size + 1))
    order = jnp.cumsum(real) - 1  # position among the real steps
    return real & (order >= start) & (order < start + size)
