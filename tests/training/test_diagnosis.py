"""What is said of numbers that are not finite: samples, layers, parameters."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config.data import ArraysOptions, SyntheticOptions
from sft_jax.config.run import AugmentConfig, Config, DataConfig, Duration, ModelConfig, TrainConfig
from sft_jax.data import pipeline
from sft_jax.models.base import Output
from sft_jax.models.layers import OF_EVERY_LAYER
from sft_jax.tasks.classification import Classification
from sft_jax.training import session
from sft_jax.training.diagnosis import explain_rows, explain_step, first_layer
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.step import StepConfig
from sft_jax.training.trainer import apply_function
from sft_jax.types import NonFiniteError

ROWS, FEATURES, CLASSES, DEPTH = 16, 2, 3, 3
PLAN = MixupPlan(
    mode="any",
    alpha=1.0,
    warmup_steps=0,
    group_size=ROWS,
    num_modalities=2,
    num_pre_layers=1,
    num_post_layers=1,
)


class Length(nn.Module):
    """Of a vector; its derivative at zero is not a number."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (FEATURES,))
        return jnp.sqrt(jnp.square(x * scale).sum(axis=-1, keepdims=True))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, z, _):
        return nn.Dense(FEATURES, name="dense")(z), None


class Small(nn.Module):
    """Two modalities, a loop over layers, a head; compiles in no time."""

    @nn.compact
    def __call__(self, inputs, mask, keys=None, mixup=None):
        z = 0.0
        for name, x in inputs.items():
            x = jnp.where(mask[name][..., None], x, 0)
            z += nn.Dense(FEATURES, name=f"tokenizer_{name}")(x).mean(axis=1)
        stack = nn.scan(Layer, **OF_EVERY_LAYER, length=DEPTH)
        z, _ = stack(name="stack")(z, jnp.arange(DEPTH))
        z += Length(name="length")(inputs["m1"][:, 0])
        return Output(nn.Dense(CLASSES, name="head")(z), {})


CONFIG = StepConfig(
    apply=apply_function(Small()),
    optimizer=optax.sgd(0.1),
    schedule=lambda count: 0.1,
    augmentation=AugmentConfig(),
    task=Classification(class_names=("a", "b", "c", "d")[:CLASSES], label_smoothing=0.1),
    accumulate=2,
    seed=0,
    mixup=PLAN,
)


@pytest.fixture
def batch(rng):
    mask = {name: np.arange(4) < rng.integers(1, 5, (ROWS, 1)) for name in ("m0", "m1")}
    weight = (np.arange(ROWS) < ROWS - 1).astype(np.float32)  # the last row pads
    return {
        "inputs": {m: rng.normal(size=(ROWS, 4, FEATURES)).astype(np.float32) for m in mask},
        "mask": mask,
        "target": rng.integers(CLASSES, size=ROWS).astype(np.int32),
        "weight": weight,
        "id": np.where(weight > 0, 100 + np.arange(ROWS), -1).astype(np.int32),
    }


@pytest.fixture
def params(batch, rng):
    shapes = jax.eval_shape(Small().init, jax.random.key(0), batch["inputs"], batch["mask"])
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])


def explain(params, batch):
    return explain_step(params, batch, 4, model=Small(), config=CONFIG, name="r{}".format)


def test_a_sample_and_the_tokenizer_of_its_modality_are_named(params, batch):
    batch["inputs"]["m1"][2, 0, 1] = np.nan
    batch["inputs"]["m0"][5, 3] = np.inf
    batch["mask"]["m0"][5] = [True, True, True, False]  # so that it is padding
    batch["inputs"]["m1"][ROWS - 1] = np.nan  # in a row that pads the batch
    assert explain(params, batch) == (
        "taken alone, not finite: sample 'r102' (inputs of m1 are not finite); the first layer "
        "whose output is not finite is tokenizer_m1"
    )


def test_ten_samples_are_named_and_the_others_counted(params, batch):
    batch["inputs"]["m0"][1:14, 0] = -np.inf
    says = explain(params, batch)
    assert "'r101' (inputs of m0 are not finite), 'r102'" in says
    assert "'r110' (inputs of m0 are not finite) and 3 more; the first" in says
    assert "r111" not in says


def test_the_layer_of_a_stack_that_overflows_is_named(params, batch):
    params["tokenizer_m0"]["bias"][:] = 100
    params["stack"]["dense"]["kernel"][:] = (
        np.eye(FEATURES),
        np.full((2, 2), 3e38),
        np.eye(FEATURES),
    )
    assert explain(params, batch).endswith(
        "the first layer whose output is not finite is stack/dense (layer 1)"
    )


def test_a_later_layer_of_a_stack_comes_after_an_earlier_one(params, batch):
    """Though in the order of the program `dense` of a layer is ahead of the layer itself."""
    params["tokenizer_m0"]["bias"][:] = 100
    params["stack"]["dense"]["kernel"][0] = 3e38
    params["head"]["kernel"][:] = np.nan
    layer = first_layer(Small(), params, batch["inputs"], batch["mask"], None)
    assert layer == "stack/dense (layer 0)"
    params["stack"]["dense"]["kernel"][0] = 0
    layer = first_layer(Small(), params, batch["inputs"], batch["mask"], None)
    assert layer == "head"


def test_parameters_that_were_not_finite_already_are_named(params, batch):
    params["head"]["bias"][1] = np.inf
    params["length"]["scale"][0] = np.nan
    assert explain(params, batch) == (
        "the parameters were not finite before it: head/bias, length/scale"
    )


def test_a_gradient_that_is_not_finite_is_named_with_its_sample(params, batch):
    batch["inputs"]["m1"][3] = 0
    assert explain(params, batch) == (
        "taken alone, not finite: sample 'r103'; every layer's output is finite, the gradient of "
        "these parameters is not: length/scale"
    )


def test_a_loss_that_is_too_large_for_finite_logits(params, batch):
    params["head"]["bias"][:] = 3e38, -3e38, 0
    says = explain(params, batch)
    assert says.endswith("every layer's output is finite, the loss of these logits is not")


def test_where_no_sample_is_to_blame_the_largest_gradient_is_named(params, batch):
    """Each is finite, the square of its norm is not."""
    batch["inputs"]["m0"][7, 0] = 1e25
    params["tokenizer_m0"]["kernel"] *= 1e-25
    says = explain(params, batch)
    assert says.startswith("each sample taken alone, without mixup, has a finite loss")
    assert says.endswith("of tokenizer_m0/kernel")


def test_rows_of_an_evaluation(params, batch):
    batch["inputs"]["m1"][1, 0] = np.nan
    some = jax.tree.map(lambda x: x[1:3], batch)
    name = "r{}".format
    says = explain_rows(params, some, model=Small(), name=name, count=5)
    assert says == (
        "taken alone, not finite: sample 'r101' (inputs of m1 are not finite), 'r102' and 3 more; "
        "the first layer whose output is not finite is tokenizer_m1"
    )
    params["head"]["bias"][1] = np.nan
    says = explain_rows(params, some, model=Small(), name=name)
    assert says == "the parameters are not finite: head/bias"


# --- a run ------------------------------------------------------------------------------------


def test_a_run_asks_about_its_own_model_and_records(tmp_path, monkeypatch):
    """Everything that the loop is handed, but for the compiled step, which takes longest."""
    collate = pipeline.collate

    def poisoned(*arguments):
        batch = collate(*arguments)
        batch["inputs"]["m1"][batch["id"] == 5, 2] = np.nan
        return batch

    for module in (pipeline, session):
        monkeypatch.setattr(module, "collate", poisoned)

    def ask(config, schedule, parts, abstract, state, workdir):
        jax.tree.map(np.testing.assert_array_equal, *jax.device_get((state, parts.first())))
        said.append(parts.diagnosis.of_validation(state.params))
        return session.loop.Outcome(0, False, None, 0)

    said, mesh = [], session.make_mesh
    monkeypatch.setattr(session, "make_mesh", lambda train: mesh(train, jax.devices()[:1]))
    monkeypatch.setattr(session.loop, "train", ask)
    options = SyntheticOptions(
        num_train=8, num_valid=8, num_test=2, lengths=(6, 8), min_length=1.0, missing_rate=0.0
    )
    config = Config(
        model=ModelConfig(embed_dim=8, num_heads=1, num_pre_layers=0, num_post_layers=1),
        data=DataConfig(source="synthetic", options=options, data_dir=str(tmp_path / "data")),
        train=TrainConfig(batch_size=8, duration=Duration(9.0, "steps")),
    )
    session.train(config, tmp_path / "run")
    assert said == [
        "taken alone, not finite: sample 'valid000005' (inputs of m1 are not finite); the first "
        "layer whose output is not finite is encoder_m1/tokenizer/proj"
    ]


def test_a_run_ends_with_the_step_the_sample_and_the_layer(tmp_path, monkeypatch):
    """Of a value that data checks let pass, and of which the first product is infinite."""
    mesh, rng = session.make_mesh, np.random.default_rng(0)
    monkeypatch.setattr(session, "make_mesh", lambda train: mesh(train, jax.devices()[:1]))
    features = rng.normal(size=(8, 5, 16)).astype(np.float32)
    features[6, 1] = 3.4e38
    names = [f"walk-{i}" for i in range(8)]
    np.savez(tmp_path / "mine.npz", m0=features, label=np.arange(8) % 2, id=names)
    options = ArraysOptions(path=str(tmp_path / "mine.npz"), valid_fraction=0.0, test_fraction=0.0)
    data = {"source": "arrays", "options": options, "data_dir": str(tmp_path / "data")}
    config = Config(
        model=ModelConfig(embed_dim=8, num_heads=1, num_pre_layers=0, num_post_layers=1),
        data=DataConfig(normalization="none", **data),
        train=TrainConfig(batch_size=2, duration=Duration(4.0, "steps"), log_every=4),
    )
    with pytest.raises(NonFiniteError) as caught:
        session.train(config, tmp_path / "run")
    says = str(caught.value)
    # The step itself, and not the fourth, after which it was seen.
    assert re.match(r"step [1-3]: metric '\w+' is nan, expected a finite number; taken alone", says)
    assert "not finite: sample 'walk-6'; the first layer whose output is not finite is " in says
    assert "is encoder_m0/tokenizer/proj. The newest checkpoint is from before it" in says
