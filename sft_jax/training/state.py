"""What training carries from step to step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sft_jax.config.modality import ModalitySpec
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.randomness import Seed
from sft_jax.training.sharding import parameter_shardings
from sft_jax.types import Leaf


@flax.struct.dataclass
class TrainState:
    """A pytree: parameters, optimizer state, and two scalars.

    Attributes:
        step: int32 optimizer steps taken.
        params: the model's parameters, float32.
        opt_state: of the optax transformation.
        lr_scale: float32 factor on the learning rate, set by the plateau rule between epochs.
    """

    step: Leaf
    params: Any
    opt_state: Any
    lr_scale: Leaf


def example_inputs(specs: tuple[ModalitySpec, ...]) -> tuple[dict, dict]:
    """One all-real sample of zeros: inputs and mask, for shape inference."""
    inputs, mask = {}, {}
    for spec in specs:
        if spec.tokenizer == "token":
            inputs[spec.name] = jnp.zeros((1, spec.length), jnp.int32)
        else:
            inputs[spec.name] = jnp.zeros((1, spec.length, spec.feature_dim), jnp.float32)
        mask[spec.name] = jnp.ones((1, spec.length), bool)
    return inputs, mask


def state_initializer(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: Seed
) -> Callable[[], TrainState]:
    """A function of nothing that draws the first state; to be traced, not called eagerly."""

    @standard_promotion
    def init() -> TrainState:
        params = model.init(jax.random.key(seed), *example_inputs(model.modalities))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            lr_scale=jnp.ones((), jnp.float32),
        )

    return init


def abstract_state(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(init)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh),
    )


def create_state(init: Callable[[], TrainState], mesh: Mesh) -> tuple[TrainState, TrainState]:
    """Draws the state straight into its shardings.

    Returns:
        The state, and what `abstract_state` says of it.
    """
    abstract = abstract_state(init, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(), abstract


def differences(stored: Any, expected: Any) -> list[str]:
    """What is not in both of two trees, or not of one shape and dtype; the first few."""

    def describe(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
            for path, x in leaves
        }

    found, wanted = describe(stored), describe(expected)
    different = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    # Moments differ wherever parameters do.
    return sorted(different, key=lambda line: not line.startswith("params"))[:3]
