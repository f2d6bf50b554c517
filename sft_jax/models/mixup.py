"""Multimodal manifold mixup (arXiv 2111.11992, section 3.4): samples blended inside the network.

Depth, strengths and partners are traced values, so one program serves every step, those of a
warm-up included. Partners are drawn inside groups of the batch whose number is fixed by the
configuration; as long as no group is cut by a device boundary, no activation crosses devices and
every number of devices computes the same step.
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
    """One step's draw.

    Attributes:
        depth: `[]` int32 encoder block after which samples are blended, counted from the first
            block of the modalities on; -1 blends nowhere.
        lam: `[m, b]` float32 share that a sample keeps of itself, by modality.
        partner: `[b]` int32 row of the batch that it is blended with.
    """

    depth: Leaf
    lam: Leaf
    partner: Leaf

    @property
    def label_share(self) -> Float[Array, " b"]:
        """Share of each sample's own label in its loss: the mean over modalities, 1 unmixed."""
        return jnp.where(self.depth < 0, 1.0, self.lam.mean(axis=0))


def mix(
    z: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    mixup: Mixup,
    *,
    modality: int,
    depth: int | Int[Array, ""],
) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
    """`lam z + (1 - lam) z[partner]` at the step's depth, nothing at every other.

    A masked token counts as zero, and so does CLS where nothing else is real; the blend is real
    where either of the two was.

    Args:
        z: tokens with CLS in front.
        mask: which of them are real.
        mixup: the step's draw.
        modality: row of `lam`.
        depth: block that `z` comes out of.
    """

    def blend():
        content = mask.at[:, 0].set(mask[:, 1:].any(axis=1))
        real = jnp.where(content[..., None], z, 0)
        lam = mixup.lam[modality][:, None, None].astype(z.dtype)
        union = mask | mask[mixup.partner]
        return lam * real + (1 - lam) * real[mixup.partner], union

    return jax.lax.cond(mixup.depth == depth, blend, lambda: (z, mask))


def mixer(mixup: Mixup | None, *, modality: int, first: int) -> Mixer | None:
    """`mix` for a stack of blocks whose first one has depth `first`; None without mixup."""
    if mixup is None:
        return None

    def after(z, mask, layer):
        return mix(z, mask, mixup, modality=modality, depth=first + layer)

    return after


def draw_depth(
    key: Key[Array, ""], mode: str, num_pre_layers: int, num_post_layers: int
) -> Int[Array, ""]:
    """A block drawn uniformly: before fusion (`within`), after it (`fused`), or `any`."""
    low = num_pre_layers if mode == "fused" else 0
    high = num_pre_layers if mode == "within" else num_pre_layers + num_post_layers
    return jax.random.randint(key, (), low, high, jnp.int32)


def draw_lam(keys: Key[Array, " b"], num_modalities: int, alpha: float) -> Float[Array, "m b"]:
    """Beta(alpha, alpha) for every sample and modality, from one key a sample."""
    draw = functools.partial(jax.random.beta, a=alpha, b=alpha, shape=(num_modalities,))
    return jax.vmap(draw)(keys).T


def draw_partners(
    keys: Key[Array, " g"], group_size: int, weight: Float[Array, " b"]
) -> Int[Array, " b"]:
    """A permutation inside every group of consecutive rows, from one key a group.

    Args:
        keys: of the groups.
        group_size: rows of each.
        weight: 0 on rows that pad the batch; a sample drawn one of these for partner keeps itself.
    """
    inside = jax.vmap(lambda key: jax.random.permutation(key, group_size))(keys)
    partner = (inside + group_size * jnp.arange(len(keys))[:, None]).reshape(-1)
    rows = jnp.arange(len(partner))
    return jnp.where(weight[partner] > 0, partner, rows).astype(jnp.int32)
