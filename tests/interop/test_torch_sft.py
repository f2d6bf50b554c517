import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import (
    AugmentConfig,
    Config,
    Duration,
    MixupConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from sft_jax.efficiency.model_costs import random_batch
from sft_jax.interop.weights.reference_weights import to_reference
from sft_jax.models import registry
from sft_jax.tasks import from_config
from sft_jax.training.state import TrainState, example_inputs
from sft_jax.training.step import train_step
from sft_jax.training.trainer import Trainer
from sft_jax.types import ConfigError, DataError

torch = pytest.importorskip("torch", reason="the extra 'torch' is optional and not installed")
from sft_jax.interop.torch import torch_sft  # noqa: E402 (only where torch is

POOLS = {"max": {"window": 3}, "avg": {"window": 4}, "attn_topk": {"k": 5}}


def config_of(pool="max", dropout=0.0, model=None, **parts):
    specs = (
        ModalitySpec(name="sound", length=14, feature_dim=6, pool=pool, **POOLS[pool]),
        ModalitySpec(name="image", length=11, feature_dim=9, pool=pool, **POOLS[pool]),
    )
    network = ModelConfig(
        num_classes=4,
        embed_dim=12,
        num_heads=3,
        num_pre_layers=1,
        num_post_layers=2,
        dropout=dropout,
        **(model or {}),
    )
    parts = {"train": TrainConfig(batch_size=6), **parts}
    return Config(modalities=specs, model=network, **parts)


def params_of(config, seed=0):
    """Random parameters, biases and norms included, so that each one counts."""
    arguments = (jax.random.key(0), *example_inputs(config.modalities))
    shapes = jax.eval_shape(registry.build(config).init, *arguments)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)


def padded(config):
    """Padding left, right and in between, a sample with one token, and a missing modality."""
    batch, rng = random_batch(config), np.random.default_rng(1)
    sound, image = batch["mask"]["sound"], batch["mask"]["image"]
    sound[0, :5] = image[1, 4:] = sound[2, 1:] = image[3] = False
    sound[4], image[5] = rng.random(14) < 0.5, rng.random(11) < 0.7
    for name, x in batch["inputs"].items():
        x[~batch["mask"][name]] = np.nan
    return batch


# These programs run a few times each: compiling them well would take longer than running them.
QUICKLY = {"xla_backend_optimization_level": 0}


@functools.cache
def compiled_model(modalities, model):
    network = registry.build(Config(modalities=modalities, model=model))
    return jax.jit(network.apply, compiler_options=QUICKLY)


def ours(config, params, batch):
    apply, batch = compiled_model(config.modalities, config.model), jax.tree.map(jnp.asarray, batch)
    return np.asarray(apply({"params": params}, batch["inputs"], batch["mask"]).logits)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("make", [random_batch, padded])
def test_logits_are_ours(pool, make):
    config = config_of(pool)
    params, batch = params_of(config), make(config)
    logits = torch_sft.logits(config, params, batch)
    assert logits.shape == (6, 4)
    np.testing.assert_allclose(logits, ours(config, params, batch), atol=2e-5, rtol=0)
    assert np.ptp(logits, axis=0).min() > 0.1


def test_a_mask_that_hides_nothing_changes_nothing_and_is_not_handed_on():
    config = config_of()
    params, batch = params_of(config), random_batch(config)
    inputs, masks = torch_sft.tensors(config, batch)
    assert masks == (None, None)
    model = torch_sft.build(config, params).eval()
    full = tuple(torch.ones(x.shape[:2], dtype=torch.bool) for x in inputs)
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs, masks), model(inputs, full), atol=1e-5, rtol=0)


def test_a_mask_keeps_attention_fused():
    config = config_of()
    model = torch_sft.build(config, params_of(config)).eval()
    with torch.profiler.profile() as profile:
        model(*torch_sft.tensors(config, padded(config)))
    calls = {event.key: event.count for event in profile.key_averages()}
    # Two modalities of a block and a pooling block, two fused blocks.
    assert calls["aten::_scaled_dot_product_flash_attention_for_cpu"] == 6


def our_steps(config, params, batch, steps):
    """Losses before each step of ours, and the parameters behind the last."""
    step = Trainer.of(config, from_config(config), 1000).step
    optimizer = step.optimizer
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(
        step=jnp.int32(0), params=params, opt_state=optimizer.init(params), lr_scale=jnp.float32(1)
    )
    batch = jax.tree.map(jnp.asarray, batch)
    run = jax.jit(lambda state: train_step(state, batch, config=step), compiler_options=QUICKLY)
    losses = []
    for _ in range(steps):
        state, metrics = run(state)
        losses.append(float(np.divide(*metrics["loss"])))
    return losses, state.params


@pytest.mark.parametrize(
    ("pool", "make", "options", "smoothing"),
    [
        ("max", random_batch, {}, 0.0),
        ("attn_topk", padded, {"weight_decay": 0.5, "clip_norm": 0.05}, 0.2),
    ],
)
def test_three_training_steps_are_ours(pool, make, options, smoothing):
    config = config_of(
        pool,
        optimizer=OptimizerConfig(**{"learning_rate": 3e-3, **options}),
        train=TrainConfig(batch_size=6, label_smoothing=smoothing),
    )
    params, batch = params_of(config), make(config)
    batch["weight"][4:] = 0
    losses, trained = our_steps(config, params, batch, steps=3)
    train, infer = torch_sft.candidates(config, params, batch)["torch eager"]
    theirs = [float(train()) for _ in range(3)]
    if smoothing == 0:  # our metric leaves label smoothing out
        np.testing.assert_allclose(theirs, losses, atol=1e-4, rtol=0)
        assert losses[2] < losses[0] - 0.01
    before, after = ours(config, params, batch), ours(config, trained, batch)
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(infer().numpy(), after, atol=1e-4, rtol=0)


def test_decay_is_on_the_weights_of_linear_layers_alone():
    config = config_of(optimizer=OptimizerConfig(weight_decay=0.3))
    model = torch_sft.build(config, params_of(config))
    decayed, rest = torch_sft.optimizer_of(config, model).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in decayed["params"]}
    # Tokenizer, a block and a pooling block a modality, two fused blocks, the classifier.
    assert len(found) == 2 * (1 + 4 + 2) + 2 * 4 + 1
    assert "network.mlps_fused.0.1.weight" in found
    assert not {"network.mlps_fused.0.0.weight", "sound_tokenizer.cls_token"} & found


def test_dropout_acts_in_training_alone():
    config = config_of(dropout=0.5, optimizer=OptimizerConfig(learning_rate=0.0))
    params, batch = params_of(config), random_batch(config)
    train, infer = torch_sft.candidates(config, params, batch)["torch eager"]
    assert float(train()) != float(train())
    np.testing.assert_allclose(infer().numpy(), ours(config, params, batch), atol=2e-5, rtol=0)


def test_candidates_share_nothing_with_each_other_or_with_what_was_given():
    config = config_of()
    params, batch = params_of(config), random_batch(config)
    threads = torch.get_num_threads()
    found = torch_sft.candidates(config, params, batch, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert list(found) == ["torch eager", "torch compiled"]
    _, infer = torch_sft.candidates(config, params, batch)["torch eager"]
    found["torch eager"][0]()
    expected = ours(config, params, batch)
    for x in (*batch["inputs"].values(), *jax.tree.leaves(params)):
        x[:] = 0
    np.testing.assert_allclose(infer().numpy(), expected, atol=2e-5, rtol=0)


def test_the_state_dict_has_the_reference_s_names():
    config = config_of()
    params = params_of(config)
    state = torch_sft.build(config, params).state_dict()
    expected = to_reference(params, config.model, ["sound", "image"], like=state)
    assert set(state) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), array, err_msg=name)


def with_pool(**changes):
    specs = (ModalitySpec(name="sound", length=14, feature_dim=6, **changes),)
    return dataclasses.replace(config_of(), modalities=specs)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of(model={"name": "mbt"}), ("model.name", "'mbt'", "sft")),
        (config_of(model={"preset": "modern"}), ("model.preset", "'modern'", "paper")),
        (config_of(model={"attention": "fixed"}), ("model.attention", "'fixed'", "dense")),
        (config_of(model={"dtype": "bfloat16"}), ("model.dtype", "'bfloat16'", "float32")),
        (with_pool(pool="cls_topk", k=3), ("'sound'", "pool", "'cls_topk'", "max, avg")),
        (with_pool(pool="max", window=2, tokenizer="token"), ("'sound'", "tokenizer", "'token'")),
        (Config(), ("modalities", "num_classes")),
    ],
)
def test_models_that_are_not_offered_are_named(config, words):
    with pytest.raises(ConfigError) as error:
        torch_sft.build(config, {})
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"mixup": MixupConfig(mode="any", groups=1)}, ("mixup.mode", "'any'", "none")),
        ({"augment": AugmentConfig(jitter=0.1)}, ("augment.jitter", "0.1")),
        ({"augment": AugmentConfig(scale=0.2)}, ("augment.scale", "0.2")),
        ({"train": TrainConfig(batch_size=6, accumulate=3)}, ("train.accumulate", "3")),
        ({"optimizer": OptimizerConfig(schedule="cosine")}, ("optimizer.schedule", "'cosine'")),
        (
            {"optimizer": OptimizerConfig(warmup=Duration(5.0, "steps"))},
            ("optimizer.warmup", "5.0"),
        ),
    ],
)
def test_steps_that_are_not_offered_are_named(parts, words):
    config = config_of(**parts)
    with pytest.raises(ConfigError) as error:
        torch_sft.candidates(config, {}, random_batch(config))
    assert all(word in str(error.value) for word in words), error.value


def test_parameters_of_another_model_are_refused():
    deeper = dataclasses.replace(config_of().model, num_post_layers=5)
    with pytest.raises(DataError, match=r"2 layers, expected 5"):
        torch_sft.build(dataclasses.replace(config_of(), model=deeper), params_of(config_of()))
