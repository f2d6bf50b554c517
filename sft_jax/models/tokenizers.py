"""Tokenizers, which turn the raw sequence of a modality into tokens."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from sft_jax.config.modality import ModalitySpec
from sft_jax.models.layers import BlockConfig, Layer, dense


def to_patches(
    x: Float[Array, "b t f"], patch: tuple[int, int]
) -> Float[Array, "b tokens patch_size"]:
    """Divides `x` into patches of `(time steps, features)`, ordered by time first."""
    b, t, f = x.shape
    rows, columns = patch
    x = x.reshape(b, t // rows, rows, f // columns, columns).transpose(0, 1, 3, 2, 4)
    return x.reshape(b, -1, rows * columns)


def to_tubelets(
    x: Float[Array, "b t f"], frame: tuple[int, int, int], tubelet: tuple[int, int, int]
) -> Float[Array, "b tokens tubelet_size"]:
    """Divides a video into tubelets, ordered by time, then rows, then columns.

    Args:
        x: Flattened frames.
        frame: `(height, width, channels)` of a frame.
        tubelet: `(frames, height, width)` of a tubelet.

    Returns:
        The `frames * height * width * channels` values of every tubelet, in that order.
    """
    b, t, _ = x.shape
    height, width, channels = frame
    steps, rows, columns = tubelet
    x = x.reshape(
        b, t // steps, steps, height // rows, rows, width // columns, columns, channels
    ).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, -1, steps * rows * columns * channels)


def token_mask(mask: Bool[Array, "b t"], spec: ModalitySpec) -> Bool[Array, "b tokens"]:
    """Mask of the tokens: real if at least one of their time steps is."""
    steps, *others = spec.grid
    of_steps = mask.reshape(mask.shape[0], steps, spec.steps_per_token).any(axis=-1)
    return jnp.repeat(of_steps, math.prod(others), axis=1)


class Tokenizer(Layer):
    """Projects a modality to width `d`, prepends CLS and adds learned positions."""

    spec: ModalitySpec
    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t f"] | Int[Array, "b t"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b tokens d"], Bool[Array, "b tokens"]]:
        """Returns tokens with CLS at position 0, and their mask, in which CLS is always real."""
        d, dtype, spec = self.config.embed_dim, self.config.dtype, self.spec
        if spec.tokenizer == "token":
            ids = jnp.where(mask, x, 0)
            z = nn.Embed(spec.feature_dim, d, dtype=dtype, name="embed")(ids)
        else:
            # Values in padding, NaN included, must not reach a product.
            x = jnp.where(mask[..., None], x, 0).astype(dtype)
            if spec.tokenizer == "patch":
                x = to_patches(x, spec.patch)
            elif spec.tokenizer == "tubelet":
                x = to_tubelets(x, spec.frame, spec.tubelet)
            z = dense(d, dtype, "proj")(x)
        init = nn.initializers.normal(self.config.style.embedding_std)
        cls = self.param("cls", init, (1, 1, d), jnp.float32).astype(dtype)
        shape = (1, spec.num_tokens + 1, d)
        positions = self.param("positions", init, shape, jnp.float32).astype(dtype)
        z = jnp.concatenate([jnp.broadcast_to(cls, (z.shape[0], 1, d)), z], axis=1) + positions
        return z, with_cls(token_mask(mask, spec))


def tokenize(
    inputs: dict[str, Num[Array, "b ..."]],
    mask: dict[str, Bool[Array, "b _"]],
    specs: tuple[ModalitySpec, ...],
    config: BlockConfig,
) -> dict[str, tuple[Float[Array, "b tokens d"], Bool[Array, "b tokens"]]]:
    """Tokenizes every modality with a `Tokenizer` named after it; call in a model's `__call__`.

    Raises:
        ValueError: See `check_inputs`.
    """
    check_inputs(inputs, mask, specs)
    return {
        spec.name: Tokenizer(spec, config, name=f"tokenizer_{spec.name}")(
            inputs[spec.name], mask[spec.name]
        )
        for spec in specs
    }


def with_cls(mask: Bool[Array, "b t"]) -> Bool[Array, "b tokens"]:
    """Prepends an always real CLS to `mask`."""
    return jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)


def check_inputs(
    inputs: dict[str, jax.Array], mask: dict[str, jax.Array], specs: tuple[ModalitySpec, ...]
):
    """Raises `ValueError` if a modality is missing, unexpected, or has another shape."""
    names = {spec.name for spec in specs}
    for what, given in (("inputs", set(inputs)), ("mask", set(mask))):
        if given != names:
            raise ValueError(
                f"{what}: given {sorted(given)}, expected {sorted(names)}; hand over every "
                "modality, with an all-false mask where it is missing"
            )
    for spec in specs:
        features = () if spec.tokenizer == "token" else (spec.feature_dim,)
        shape, tail = inputs[spec.name].shape, (spec.length, *features)
        if shape[1:] != tail or mask[spec.name].shape != shape[:2]:
            raise ValueError(
                f"modality {spec.name!r}: given shape {shape} with mask "
                f"{mask[spec.name].shape}, expected (b, {', '.join(map(str, tail))}) with mask "
                f"(b, {spec.length}); pad or cut the records to the configuration's length"
            )
