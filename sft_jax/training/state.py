"""State of a training run: the arrays on its devices, and the progress of its loop."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sft_jax.config.modality import ModalitySpec
from sft_jax.files.json_files import anything, integer, map_of, nullable, number, record
from sft_jax.training.optimizer import Plateau
from sft_jax.training.promotion import standard_promotion
from sft_jax.training.randomness import Seed
from sft_jax.training.sharding import parameter_shardings
from sft_jax.types import Leaf

# The lowest loss is infinite before the first validation.
_PLATEAU = record({"scale": number(least=0), "best": number(most=math.inf), "stale": integer()})
_PROGRESS = record(
    {"data": map_of(anything), "plateau": _PLATEAU},
    {"best": nullable(number()), "best_step": integer(), "stale": integer()},
)


@flax.struct.dataclass
class TrainState:
    """Arrays of a training run, as a pytree.

    Attributes:
        step: Optimizer steps taken, int32.
        params: Parameters of the model, float32.
        opt_state: State of the optimizer.
        lr_scale: Factor on the learning rate, float32, set by the plateau rule.
    """

    step: Leaf
    params: Any
    opt_state: Any
    lr_scale: Leaf


@dataclasses.dataclass(frozen=True)
class Progress:
    """State of the loop on the host, saved as JSON beside the arrays.

    Attributes:
        data: Position of the iterator over the training data.
        plateau: State of the plateau rule.
        best: Best value so far of the metric that chooses the best checkpoint, or None.
        best_step: Step of that value.
        stale: Number of validations since that value.
    """

    data: dict[str, Any]
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    best: float | None = None
    best_step: int = 0
    stale: int = 0

    def to_json(self) -> dict[str, Any]:
        """Converts to plain dicts and numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        """Restores what `to_json` returned.

        Raises:
            ValueError: Entries are missing or have other types.
        """
        _PROGRESS(content, "progress")
        return cls(**{**content, "plateau": Plateau(**content["plateau"])})


def example_inputs(specs: tuple[ModalitySpec, ...]) -> tuple[dict, dict]:
    """Inputs and mask of one unmasked sample of zeros, for shape inference."""
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
    """Returns a function that draws the first state; to be traced rather than called eagerly."""

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
    """Draws the first state directly into its shardings.

    Returns:
        The state, and its abstract counterpart from `abstract_state`.
    """
    abstract = abstract_state(init, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(), abstract


def differences(stored: Any, expected: Any) -> list[str]:
    """The first few leaves that two trees do not share with the same shape and dtype, as text."""

    def describe(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
            for path, x in leaves
        }

    actual, wanted = describe(stored), describe(expected)
    different = [
        f"{name}: found {actual.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(actual.keys() | wanted.keys())
        if actual.get(name) != wanted.get(name)
    ]
    # Parameters first: the optimizer's moments differ wherever they do.
    return sorted(different, key=lambda line: not line.startswith("params"))[:3]
