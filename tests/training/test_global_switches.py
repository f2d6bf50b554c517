"""JAX's global switches, which a user's own program may have set, change no model and no run."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.model import ConcatOptions, ModelConfig
from sft_jax.config.run import Config, MixupConfig, TrainConfig
from sft_jax.data.pipeline import Normalizer
from sft_jax.tasks import from_config
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.predictor import Predictor
from sft_jax.training.sharding import make_mesh
from sft_jax.training.state import Progress
from sft_jax.training.trainer import Trainer


@contextlib.contextmanager
def checking_switches():
    """Every switch that makes JAX check or compute more strictly, at once."""
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.default_matmul_precision("highest"),
    ):
        yield


SWITCHES = {"x64": lambda: jax.enable_x64(True), "checks": checking_switches}


@pytest.fixture(scope="module")
def config(tiny):
    config = tiny.config(mixup=MixupConfig(mode="any", groups=2))
    augment = dataclasses.replace(config.augment, mirror_polar=("m1",), hide=0.2, gap=0.3)
    return dataclasses.replace(config, augment=augment)


def trainer_of(config):
    mesh = make_mesh(TrainConfig(), jax.devices()[:1])
    return Trainer.of(config, from_config(config), steps_per_epoch=4, mesh=mesh)


def predict(config, params, batch):
    factors = {spec.name: (1.0,) * spec.feature_dim for spec in config.modalities}
    shift = {name: (0.0,) * len(factor) for name, factor in factors.items()}
    normalizer = Normalizer(kind="rms", shift=shift, scale=factors)
    arrays = {name: x.astype(np.float64) for name, x in batch["inputs"].items()}
    arrays |= {f"mask/{name}": real for name, real in batch["mask"].items()}
    arrays = {name: x[batch["weight"] > 0] for name, x in arrays.items()}
    return Predictor(config, params, normalizer, from_config(config)).predict(arrays).entries()


def train_and_predict(config, batch):
    """First state, state and metrics after one step, and predictions, as NumPy arrays."""
    trainer = trainer_of(config)
    state, abstract = trainer.create_state()
    first = jax.device_get(state)
    state, metrics = jax.device_get(trainer.compile_train_step(abstract)(state, batch))
    predicted = predict(config, first.params, batch)
    predicted.pop("class_names")
    return {"first": first, "state": state, "metrics": metrics, "predicted": predicted}


@pytest.fixture(scope="module")
def default(config, tiny):
    return train_and_predict(config, tiny.batch())


@pytest.mark.parametrize("switch", SWITCHES)
def test_same_run_under_every_switch(switch, config, default, tiny):
    with SWITCHES[switch]():
        switched = train_and_predict(config, tiny.batch())
    expected = jax.tree_util.tree_leaves_with_path(default)
    found = jax.tree_util.tree_leaves_with_path(switched)
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (path, x), (_, y) in zip(found, expected, strict=True):
        name = jax.tree_util.keystr(path)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        if np.issubdtype(x.dtype, np.number):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("saved", "opened"), [(False, True), (True, False)])
def test_checkpoint_opens_in_the_other_mode(tmp_path, config, default, saved, opened):
    with jax.enable_x64(saved):
        checkpoints = Checkpoints(tmp_path, keep=1, config={})
        checkpoints.save("last", default["state"], Progress(data={}))
        checkpoints.close()
    with jax.enable_x64(opened):
        checkpoints = Checkpoints(tmp_path, keep=1, read_only=True)
        state, _ = checkpoints.restore("last", trainer_of(config).abstract_state())
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), default["state"])


SPECS = (
    ModalitySpec(name="a", length=8, feature_dim=4, pool="attn_topk", k=3),
    ModalitySpec(name="b", length=9, feature_dim=11, tokenizer="token", pool="max", window=3),
    ModalitySpec(
        name="c", length=8, feature_dim=4, tokenizer="patch", patch=(2, 2), pool="random", k=3
    ),
)


@pytest.mark.parametrize("name", ["sft", "late", "concat", "mbt", "mult"])
def test_every_model_declares_the_dtypes_of_its_parameters(name):
    options = {"options": ConcatOptions(window=3)} if name == "concat" else {}
    model = ModelConfig(
        name=name, num_classes=3, embed_dim=8, num_heads=2, num_post_layers=1, **options
    )
    trainer = trainer_of(Config(modalities=SPECS, model=model))
    with jax.enable_x64(True):
        shapes = trainer.abstract_state()
    assert {str(x.dtype) for x in jax.tree.leaves(shapes.params)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {"float32", "int32"}
