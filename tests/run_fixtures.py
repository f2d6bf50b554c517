"""Eight virtual CPU devices, and a tiny two-modality model with everything around it."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config.data import DataConfig
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import AugmentConfig, Config, MixupConfig, ModelConfig, TrainConfig
from sft_jax.models import registry
from sft_jax.runs import run_files
from sft_jax.tasks import from_config, from_run
from sft_jax.training import session, sharding, state, step
from sft_jax.training.trainer import Trainer, apply_function

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
        "tests/run_fixtures.py could ask for them"
    )
    return found


@contextlib.contextmanager
def training_on_one_device():
    """Trains on one device, for which compiling takes a third of what it takes for eight."""
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = sharding.make_mesh
        patch.setattr(session, "make_mesh", lambda train: make_mesh(train, jax.devices()[:1]))
        yield


@pytest.fixture
def one_device():
    """See `training_on_one_device`."""
    with training_on_one_device():
        yield


NO_MIXUP = MixupConfig()


def make_config(implementation="xla", preset="paper", mixup=NO_MIXUP, **train):
    return Config(
        modalities=SPECS,
        model=ModelConfig(
            preset=preset,
            num_classes=CLASSES,
            embed_dim=16,
            num_heads=2,
            num_pre_layers=1,
            num_post_layers=1,
            dropout=0.2,
            implementation=implementation,
        ),
        data=DataConfig(normalization="rms"),
        augment=AUGMENT,
        mixup=mixup,
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
        "target": np.where(present, rng.integers(CLASSES, size=rows), 0).astype(np.int32),
        "weight": present.astype(np.float32),
        "id": np.where(present, np.arange(rows), -1).astype(np.int32),
    }


def make_optimizer():
    """Clipped Adam whose state starts with a running sum of the raw gradients, to look at."""
    watch = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, seen, _: (grads, jax.tree.map(lambda g, s: g + s / 2, grads, seen)),
    )
    # A wide epsilon: where a gradient is zero but for rounding (a bias of the keys), plain Adam
    # would blow the rounding up to a full step.
    return optax.chain(watch, optax.clip_by_global_norm(0.8), optax.adamw(1e-2, eps=1e-3))


def make_step_config(config, label_smoothing=None, **changes):
    task = from_config(config)
    if label_smoothing is not None:
        task = dataclasses.replace(task, label_smoothing=label_smoothing)
    values = {
        "apply": apply_function(registry.build(config)),
        "optimizer": make_optimizer(),
        "schedule": lambda count: 1e-2 / (1.0 + count),
        "augmentation": config.augment,
        "task": task,
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


def noisy_apply(params, inputs, mask, keys):
    """As `linear_apply`, with dropout of the features, and not linear."""
    features = jnp.concatenate([inputs[spec.name].sum(axis=1) for spec in SPECS], axis=1)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, (7,)))(keys)
    return FakeOutput(
        jnp.tanh(jnp.where(keep, features, 0) @ params["kernel"]) + params["bias"], {}
    )


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
        noisy_apply=noisy_apply,
        linear_state=linear_state,
        put_state=put_state,
    )


# A small real run, as `python -m sft_jax.train` starts it.
OVERRIDES = (
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.num_pre_layers=0",
    "model.num_post_layers=1",
    "model.dropout=0.2",
    "augment.jitter=0.1",
    "mixup.mode=any",
    "mixup.warmup=1 epochs",
    "mixup.groups=4",
    "optimizer.schedule=plateau",
    "optimizer.plateau_patience=0",
    "train.batch_size=8",
    "train.duration=24 steps",
    "train.eval_every=6 steps",
    "train.checkpoint_every=3 steps",
    "train.log_every=2",
    "data.options.num_train=37",
    "data.options.num_valid=11",
    "data.options.num_test=5",
    "data.options.lengths=(12, 20)",
    "modalities.m0.length=12",
    "modalities.m1.length=20",
)
ROOT = Path(__file__).parents[1]


def find_free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def free_port():
    """Finds a port that nobody listens on."""
    return find_free_port


@pytest.fixture(scope="session")
def trainer(tmp_path_factory, quick_flags):
    """Starts training processes that share prepared data and compiled programs."""
    shared = tmp_path_factory.mktemp("trainer")

    def start(workdir, *overrides, devices=1, flags=(), **environment):
        settings = (*OVERRIDES, f"data.data_dir={shared / 'data'}", *overrides)
        config = ROOT / "configs" / "synthetic.py"
        command = ["sft_jax.train", f"--config={config}", f"--workdir={workdir}", *flags]
        command += [f"--config.{setting}" for setting in settings]
        return run_module(command, devices, **environment)

    def run_module(command, devices=1, **environment):
        """`python -m` of a verb and its flags, in a process of its own."""
        environment = {
            **os.environ,
            "XLA_FLAGS": quick_flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(shared / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def finish(process, code=0, timeout=500):
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            pytest.fail(f"a training did not end in {timeout} s; its last words: {errors[-4000:]}")
        assert process.returncode == code, errors[-4000:]
        return output, errors

    return SimpleNamespace(start=start, run_module=run_module, finish=finish)


@pytest.fixture(scope="session")
def straight_run(trainer, tmp_path_factory):
    """A run that nothing interrupted: its folder, its output, its errors."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    output, errors = trainer.finish(trainer.start(workdir))
    return SimpleNamespace(workdir=workdir, output=output, errors=errors)


def read_records(workdir):
    """Records of a run's log, without what depends on the clock."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("samples_per_second", None)
    return records


@pytest.fixture(scope="session")
def read_run():
    """From a run folder to its records and its last and best state."""

    def read(workdir):
        config = run_files.read_config(workdir)
        mesh = sharding.make_mesh(config.train, jax.devices()[:1])
        trainer = Trainer.of(config, from_run(config, run_files.read_data(workdir)), 1, mesh)
        states = {
            kind: jax.device_get(session.restore(trainer, workdir, kind))
            for kind in ("last", "best")
        }
        return SimpleNamespace(records=read_records(workdir), **states)

    return read
