"""One model, however it is computed: jit or not, either attention, either precision."""

import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from quick import QUICK

from sft_jax.attention import streamed
from sft_jax.config.modality import COUNTING_POOLS, ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.models import registry

B, CLASSES = 3, 3
SEEDS = range(2)  # of parameters, inputs and masks, for every shape
# Pools through which a rounding stays small, and those that may choose another token for it. Left
# out: `attn_kmedoids` and `merge`, which compare distances that are equal but for rounding.
SMOOTH = ("max", "avg", "attn_avg", "channel_topk", "random", "strided_random", "none")
CHOOSING = ("attn_topk", "cls_topk", "attn_random")
TILING = streamed.Tiling(4, 3)
ROUNDING = 2**-8  # between neighbours of bfloat16, relative


class Case(NamedTuple):
    """Of a model with one modality: `[b, length, features]` in, a pool of `size`, heads."""

    pool: str
    length: int
    features: int
    size: int
    heads: int
    head_width: int

    def spec(self):
        size = {"k" if self.pool in COUNTING_POOLS else "window": 1 + self.size % self.length}
        size = {} if self.pool == "none" else size
        shape = {"length": self.length, "feature_dim": self.features}
        return ModalitySpec(name="m0", pool=self.pool, **shape, **size)


def cases():
    return st.builds(
        Case,
        pool=st.sampled_from((*SMOOTH, *CHOOSING)),
        length=st.integers(3, 9),
        features=st.integers(1, 4),
        size=st.integers(0, 8),
        heads=st.integers(1, 3),
        head_width=st.integers(3, 5),
    )


def build(case, **changes):
    shape = {"num_classes": CLASSES, "num_heads": case.heads}
    shape["embed_dim"] = case.heads * case.head_width
    layers = {"num_pre_layers": 0, "num_post_layers": 1}
    config = ModelConfig(**{"implementation": "xla", **shape, **layers, **changes})
    return registry.build(Config(modalities=(case.spec(),), model=config))


@functools.cache
def shapes_of(case):
    inputs = {"m0": jnp.zeros((B, case.length, case.features))}
    mask = {"m0": jnp.ones((B, case.length), bool)}
    return jax.eval_shape(build(case).init, jax.random.key(0), inputs, mask)["params"]


def draw_arrays(case, seed):
    """Parameters, inputs, masks (any, but one real step at least), and weights of the logits."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(B, case.length, case.features)).astype(np.float32)
    mask = rng.random((B, case.length)) < rng.choice([0.3, 0.7, 1.0], (B, 1))
    mask[np.arange(B), rng.integers(case.length, size=B)] = True
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape, scale=0.5).astype(np.float32), shapes_of(case)
    )
    weights = rng.normal(size=(B, CLASSES)).astype(np.float32)
    return jax.tree.map(jnp.asarray, (params, {"m0": inputs}, {"m0": mask}, weights))


def gradient(case, **changes):
    """A function to gradients of parameters and inputs, and the model's output."""
    model = build(case, **changes)

    def loss(params, inputs, mask, weights):
        output = model.apply({"params": params}, inputs, mask)
        return (output.logits * weights).sum(), output

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


def compiled(case, **changes):
    return jax.jit(gradient(case, **changes), compiler_options=QUICK)


def difference(got, expected):
    """Root of the squares of what differs, in all leaves, over that of all that was expected."""
    got, expected = (
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
        for tree in (got, expected)
    )
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def differences(got, expected):
    """Of logits and of gradients; every choice must be the same."""
    (got_gradients, got_output), (gradients, output) = got, expected
    for name, pooled in output.pooled.items():
        np.testing.assert_array_equal(got_output.pooled[name].mask, pooled.mask)
        if pooled.indices is not None:
            np.testing.assert_array_equal(got_output.pooled[name].indices, pooled.indices)
    return difference(got_output.logits, output.logits), difference(got_gradients, gradients)


# A shape that fails says enough; a smaller one would take as long to compile again and again.
@settings(max_examples=2, phases=(Phase.explicit, Phase.generate))
@given(case=cases())
def test_one_model_by_either_attention_and_in_either_precision(case):
    """Attention in tiles of few rows, the last of which is ragged."""
    exact, in_tiles = compiled(case), compiled(case, implementation="streamed")
    rounded = compiled(case, dtype="bfloat16") if case.pool in SMOOTH else None
    for seed in SEEDS:
        arrays = draw_arrays(case, seed)
        expected = exact(*arrays)
        with (
            mock.patch.object(streamed, "plan", return_value=TILING),
            mock.patch.object(jax, "default_backend", return_value="gpu"),  # half the program
        ):
            assert max(differences(in_tiles(*arrays), expected)) < 1e-5, "streamed"
        if rounded is not None:
            # Tens of roundings at random, and the gradient's are multiplied by those of the layers.
            by_logits, by_gradients = differences(rounded(*arrays), expected)
            assert ROUNDING / 100 < by_logits < 16 * ROUNDING, "bfloat16"
            assert by_gradients < 64 * ROUNDING, "bfloat16"


@settings(max_examples=1, phases=(Phase.explicit, Phase.generate), derandomize=True)
@given(case=cases())
def test_a_model_needs_no_jit(case):
    """Loops over layers run in Python then, and everything operation by operation."""
    arrays = draw_arrays(case, 0)
    with jax.disable_jit():
        plain = gradient(case)(*arrays)
    assert max(differences(plain, compiled(case)(*arrays))) < 1e-5
