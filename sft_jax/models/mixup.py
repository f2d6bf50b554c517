"""Multimodal manifold mixup (arXiv 2111.11992, section 3.4): blending samples inside the network.

Depth, strengths and partners are traced values, so one program serves every step, warm-up
included. Partners are drawn within groups of the batch, whose number the configuration fixes. As
long as no group spans devices, no activation crosses devices and any number of devices computes
the same step.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sft_jax.types import Leaf

# (tokens, mask, position in a stack of blocks) -> (tokens, mask)
Mixer = Callable[
    [Float[Array, "b t d"], Bool[Array, "b t"], int | Int[Array, ""]],
    tuple[Float[Array, "b t d"], Bool[Array, "b t"]],
]


@flax.struct.dataclass
class Mixup:
    """Random draw of a step.

    Attributes:
        depth: `[]` int32 index of the encoder block after which samples are blended, counted from
            the first block of the modalities; -1 for no blending.
        lam: `[m, b]` float32 share of itself that a sample keeps, by modality.
        partner: `[b]` int32 row of the batch that a sample is blended with.
    """

    depth: Leaf
    lam: Leaf
    partner: Leaf

    @property
    def label_share(self) -> Float[Array, " b"]:
        """Share of each sample's own target in its loss: the mean over modalities; 1 unmixed."""
        return jnp.where(self.depth < 0, 1.0, self.lam.mean(axis=0))


def mix(
    z: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    mixup: Mixup,
    *,
    modality: int,
    depth: int | Int[Array, ""],
) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
    """Blends `lam z + (1 - lam) z[partner]` at the step's depth; the identity at others.

    Masked tokens count as zero, and so does CLS if nothing else is real. A blended token is real if
    either of the two was.

    Args:
        z: Tokens with CLS in front.
        mask: True for real tokens.
        mixup: Draw of the step.
        modality: Row of `lam`.
        depth: Block that `z` comes out of.
    """

    def blend():
        content = mask.at[:, 0].set(mask[:, 1:].any(axis=1))
        real = jnp.where(content[..., None], z, 0)
        lam = mixup.lam[modality][:, None, None].astype(z.dtype)
        union = mask | mask[mixup.partner]
        return lam * real + (1 - lam) * real[mixup.partner], union

    return jax.lax.cond(mixup.depth == depth, blend, lambda: (z, mask))


def mixer(mixup: Mixup | None, *, modality: int, first: int) -> Mixer | None:
    """Makes `mix` for a stack of blocks that starts at depth `first`; None without mixup."""
    if mixup is None:
        return None

    def after(z, mask, layer):
        return mix(z, mask, mixup, modality=modality, depth=first + layer)

    return after


def draw_depth(
    key: Key[Array, ""], mode: str, num_pre_layers: int, num_post_layers: int
) -> Int[Array, ""]:
    """Draws a block uniformly: before fusion (`within`), after it (`fused`), or `any`."""
    low = num_pre_layers if mode == "fused" else 0
    high = num_pre_layers if mode == "within" else num_pre_layers + num_post_layers
    return jax.random.randint(key, (), low, high, jnp.int32)


def draw_lam(keys: Key[Array, " b"], num_modalities: int, alpha: float) -> Float[Array, "m b"]:
    """Draws Beta(alpha, alpha) for every sample and modality, from one key per sample."""
    shape = (num_modalities,)
    draw = functools.partial(jax.random.beta, a=alpha, b=alpha, shape=shape, dtype=jnp.float32)
    return jax.vmap(draw)(keys).T


def draw_partners(
    keys: Key[Array, " g"], group_size: int, weight: Float[Array, " b"]
) -> Int[Array, " b"]:
    """Draws a permutation within every group of consecutive rows, from one key per group.

    Args:
        keys: Keys of the groups.
        group_size: Rows per group.
        weight: 0 for rows that pad the batch; a sample whose partner is padding keeps itself.
    """
    inside = jax.vmap(lambda key: jax.random.permutation(key, group_size))(keys)
    partner = (inside + group_size * jnp.arange(len(keys))[:, None]).reshape(-1)
    rows = jnp.arange(len(partner))
    return jnp.where(weight[partner] > 0, partner, rows).astype(jnp.int32)
