"""Eight virtual CPU devices, and a tiny two-modality model with everything around it."""

import os
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config import AugmentConfig, Config, ModelConfig, TrainConfig
from sft_jax.models import registry
from sft_jax.training import run, sharding, state, step
from sft_jax.types import ModalitySpec

DEVICES = 8
# Only before the first use of a device; whoever initialises jax earlier must ask for them as well.
if (
    "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
    and jax.config.jax_num_cpu_devices != DEVICES
):
    jax.config.update("jax_num_cpu_devices", DEVICES)

SPECS = (
    ModalitySpec(name="m0", length=12, feature_dim=4, tokenizer="patch", patch=(3, 2), k=3),
    ModalitySpec(name="m1", length=20, feature_dim=3, k=4),
)
CLASSES = 3
AUGMENT = AugmentConfig(rotate=("m1",), rotation_degrees=60.0, jitter=0.1, scale=0.1)


@pytest.fixture(scope="session", autouse=True)
def devices():
    found = jax.devices()
    assert len(found) == DEVICES, (
        f"found {len(found)} devices, expected {DEVICES}; jax was initialised before "
        "tests/training/conftest.py could ask for them"
    )
    return found


def make_config(implementation="xla", **train):
    return Config(
        modalities=SPECS,
        model=ModelConfig(
            preset="modern",
            num_classes=CLASSES,
            embed_dim=16,
            num_heads=2,
            num_pre_layers=1,
            num_post_layers=1,
            dropout=0.2,
            implementation=implementation,
        ),
        augment=AUGMENT,
        train=TrainConfig(**{"batch_size": 8, "seed": 3, "label_smoothing": 0.1, **train}),
    )


def make_batch(seed=0, rows=8, real=6):
    """Ragged everywhere: padding rows, short sequences, and a missing modality."""
    rng = np.random.default_rng(seed)
    inputs, mask = {}, {}
    for spec in SPECS:
        x = rng.normal(size=(rows, spec.length, spec.feature_dim)).astype(np.float32)
        lengths = rng.integers(spec.length // 2, spec.length + 1, rows)
        keep = np.arange(spec.length) < lengths[:, None]
        keep[real:] = False
        inputs[spec.name], mask[spec.name] = x, keep
    mask["m0"][1] = False
    for name, x in inputs.items():
        x[~mask[name]] = 0
    present = np.arange(rows) < real
    return {
        "inputs": inputs,
        "mask": mask,
        "label": np.where(present, rng.integers(CLASSES, size=rows), 0).astype(np.int32),
        "weight": present.astype(np.float32),
        "id": np.where(present, np.arange(rows), -1).astype(np.int32),
    }


def make_optimizer():
    """Clipped Adam whose state starts with the last gradient, to look at."""
    watch = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
    )
    # A wide epsilon: where a gradient is zero but for rounding (a bias of the keys), plain Adam
    # would blow the rounding up to a full step.
    return optax.chain(watch, optax.clip_by_global_norm(0.8), optax.adamw(1e-2, eps=1e-3))


def make_step_config(config, **changes):
    values = {
        "apply": run.apply_function(registry.build(config)),
        "optimizer": make_optimizer(),
        "schedule": lambda count: 1e-2 / (1.0 + count),
        "augmentation": config.augment,
        "label_smoothing": config.train.label_smoothing,
        "accumulate": config.train.accumulate,
        "seed": config.train.seed,
    }
    return step.StepConfig(**{**values, **changes})


@flax.struct.dataclass
class FakeOutput:
    """Of a model that pools nothing."""

    logits: jax.Array
    pooled: dict


def linear_apply(params, inputs, mask, keys):
    """A model that compiles in no time: linear in the sums of the inputs."""
    features = jnp.concatenate([inputs[spec.name].sum(axis=1) for spec in SPECS], axis=1)
    return FakeOutput(features @ params["kernel"] + params["bias"], {})


def linear_state(optimizer, mesh=None, seed=0):
    """A first state of `linear_apply`, put on a mesh where there is one."""
    kernel = np.random.default_rng(seed).normal(size=(7, CLASSES), scale=0.3)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    first = state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        lr_scale=jnp.ones(()),
    )
    return first if mesh is None else put_state(first, mesh)


def put_state(first, mesh):
    return jax.device_put(first, sharding.parameter_shardings(first, mesh))


@pytest.fixture(scope="session")
def tiny():
    """Everything above, by name."""
    return SimpleNamespace(
        specs=SPECS,
        classes=CLASSES,
        augment=AUGMENT,
        config=make_config,
        batch=make_batch,
        optimizer=make_optimizer,
        step_config=make_step_config,
        output=FakeOutput,
        linear_apply=linear_apply,
        linear_state=linear_state,
        put_state=put_state,
    )


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """Half the compile time; the compiled collectives and aliases are the same."""
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
