"""The step around a model that compiles in no time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config.run import AugmentConfig, OptimizerConfig, TrainConfig
from sft_jax.tasks.losses import cross_entropy
from sft_jax.training import randomness, sharding, state, step
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.optimizer import build_optimizer, learning_rate


def linear_step(tiny, devices, apply=None, optimizer=None, **changes):
    train = TrainConfig(batch_size=8, accumulate=changes.get("accumulate", 1))
    mesh = sharding.make_mesh(train, devices)
    optimizer = optimizer or optax.sgd(0.1)
    config = tiny.step_config(
        tiny.config(), apply=apply or tiny.linear_apply, optimizer=optimizer, **changes
    )
    first = tiny.linear_state(optimizer, mesh)
    return step.compile_train_step(config, mesh, first), first, mesh


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.adamw(lambda count: 0.1 / (count + 1))]
)
def test_one_trace_serves_every_step(tiny, devices, optimizer):
    traces = []

    def apply(*args):
        traces.append(None)
        return tiny.linear_apply(*args)

    compiled, current, mesh = linear_step(tiny, devices[:4], apply, optimizer)
    for i, real in enumerate((8, 8, 5, 0, 1)):
        current, _ = compiled(current, sharding.put_batch(tiny.batch(i, real=real), mesh))
        scale = jax.device_put(np.float32(0.5**i), current.lr_scale.sharding)
        current = current.replace(lr_scale=scale)
    assert len(traces) == 1
    assert compiled._cache_size() == 1
    assert current.step == 5


def test_one_trace_serves_an_epoch_of_warmup_and_one_of_mixup(tiny, devices):
    """The last batch of either epoch is ragged; what the step blends is seen from outside."""
    traces, epoch = [], 3
    plan = MixupPlan(
        mode="any",
        alpha=0.3,
        warmup_steps=epoch,
        group_size=2,
        num_modalities=2,
        num_pre_layers=1,
        num_post_layers=1,
    )

    def apply(params, inputs, mask, keys, mixup):
        traces.append(None)
        out = tiny.linear_apply(params, inputs, mask, keys)
        share = jnp.where(mixup.depth < 0, 1.0, mixup.lam[0])[:, None]
        return out.replace(logits=share * out.logits + (1 - share) * out.logits[mixup.partner])

    still = optax.sgd(0.0)  # so that nothing but mixup can tell the epochs apart
    compiled, current, mesh = linear_step(tiny, devices[:4], apply, still, mixup=plan)
    plain, same, _ = linear_step(tiny, devices[:4], None, still)
    for i in range(2 * epoch):
        batch = tiny.batch(i, real=5 if i % epoch == epoch - 1 else 8)
        current, mixed = compiled(current, sharding.put_batch(batch, mesh))
        same, unmixed = plain(same, sharding.put_batch(batch, mesh))
        losses = [float(metrics["loss"][0] / metrics["loss"][1]) for metrics in (mixed, unmixed)]
        apart = abs(losses[0] - losses[1])
        assert apart < 1e-4 if i < epoch else apart > 1e-3
    assert len(traces) == 1
    assert compiled._cache_size() == 1


class Linear(nn.Module):
    """As `linear_apply`, but a module that can be drawn."""

    modalities: tuple

    @nn.compact
    def __call__(self, inputs, mask, keys=None):
        features = jnp.concatenate([inputs[m.name].sum(axis=1) for m in self.modalities], axis=1)
        return nn.Dense(3)(features)


def test_the_first_state_has_the_very_types_that_the_step_hands_back(tiny, devices):
    config = OptimizerConfig(weight_decay=0.1)
    optimizer = build_optimizer(config, learning_rate(config, 10, 2))
    mesh, model = sharding.make_mesh(TrainConfig(batch_size=8), devices[:2]), Linear(tiny.specs)
    traces = []

    def apply(params, inputs, mask, keys):
        traces.append(None)
        return tiny.output(model.apply({"params": params}, inputs, mask), {})

    init = state.state_initializer(model, optimizer, 0)
    current, abstract = state.create_state(init, mesh)
    step_config = tiny.step_config(tiny.config(), apply=apply, optimizer=optimizer)
    compiled = step.compile_train_step(step_config, mesh, abstract)
    for _ in range(3):
        current, _ = compiled(current, sharding.put_batch(tiny.batch(), mesh))
    assert (len(traces), compiled._cache_size()) == (1, 1)


def test_the_transfer_guard_holds_and_bites(tiny, devices):
    compiled, current, mesh = linear_step(tiny, devices[:4])
    with jax.transfer_guard("disallow"):
        current, _ = compiled(current, sharding.put_batch(tiny.batch(), mesh))
        with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
            compiled(current, tiny.batch())


def test_gradient_of_a_linear_model_by_hand(tiny, devices):
    """Mean over real samples of `x (p - y)`, with label smoothing, at a learning rate of 0.1."""
    compiled, first, mesh = linear_step(
        tiny, devices[:2], augmentation=AugmentConfig(), label_smoothing=0.3
    )
    batch, real = tiny.batch(real=5), 5
    kernel = np.asarray(first.params["kernel"], np.float64)
    x = np.concatenate([batch["inputs"][m].sum(axis=1) for m in ("m0", "m1")], axis=1)[:real]
    p = np.exp(x @ kernel)
    p /= p.sum(axis=1, keepdims=True)
    y = 0.7 * np.eye(3)[batch["target"][:real]] + 0.3 / 3
    after, metrics = compiled(first, sharding.put_batch(batch, mesh))
    # The record is without smoothing, the gradient with it.
    plain = -np.log(p[np.arange(real), batch["target"][:real]]).sum()
    assert metrics["loss"][0] == pytest.approx(plain, rel=1e-5)
    assert metrics["top1"][0] == (p.argmax(axis=1) == batch["target"][:real]).sum()
    gradient = x.T @ (p - y) / real
    np.testing.assert_allclose(after.params["kernel"], kernel - 0.1 * gradient, rtol=1e-5)
    bias = -0.1 * (p - y).mean(axis=0)
    np.testing.assert_allclose(after.params["bias"], bias, rtol=1e-5, atol=1e-7)


def test_a_batch_without_any_real_row_changes_nothing(tiny, devices):
    compiled, first, mesh = linear_step(tiny, devices[:2])
    before = jax.device_get(first.params)
    after, metrics = compiled(first, sharding.put_batch(tiny.batch(real=0), mesh))
    assert tuple(metrics[name][0] for name in ("samples", "loss", "gradient_norm")) == (0, 0, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.params), before)


def test_the_learning_rate_scale_multiplies_the_update(tiny, devices):
    compiled, first, mesh = linear_step(tiny, devices[:1], optimizer=optax.adamw(1e-2))
    before = jax.device_get(first.params)
    batch = sharding.put_batch(tiny.batch(), mesh)
    tenth = tiny.linear_state(optax.adamw(1e-2), mesh).replace(lr_scale=jnp.float32(0.1))
    tenth = tiny.put_state(tenth, mesh)
    whole, metrics = compiled(first, batch)
    part, part_metrics = compiled(tenth, batch)
    change = jax.tree.map(lambda a, b: a - b, jax.device_get(whole.params), before)
    part_change = jax.tree.map(lambda a, b: a - b, jax.device_get(part.params), before)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.1 * b, rtol=1e-4), part_change, change
    )
    assert part_metrics["learning_rate"][0] == pytest.approx(
        0.1 * float(metrics["learning_rate"][0])
    )


@pytest.mark.parametrize(("count", "accumulate"), [(1, 1), (2, 1), (8, 1), (1, 4), (2, 2)])
def test_keys_follow_the_position_in_the_global_batch(tiny, devices, count, accumulate):
    """The model returns its keys' noise times the label, so the loss tells who had which key."""

    def apply(params, inputs, mask, keys):
        return tiny.output(jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys), {})

    compiled, current, mesh = linear_step(
        tiny, devices[:count], apply, accumulate=accumulate, label_smoothing=0.0
    )
    seen = []
    for i in range(2):
        current, metrics = compiled(current, sharding.put_batch(tiny.batch(), mesh))
        keys = randomness.sample_keys(3, jnp.int32(i), "train", jnp.arange(8))
        keys = randomness.stream_keys(keys, "dropout")
        logits = apply(None, None, None, keys).logits
        batch = jax.tree.map(jnp.asarray, tiny.batch())
        expected = (batch["weight"] * cross_entropy(logits, batch["target"])[0]).sum()
        np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-6)
        seen.append(float(metrics["loss"][0]))
    assert seen[0] != seen[1]


def test_sample_keys_share_nothing():
    positions = jnp.arange(16)
    draws = [
        jax.random.key_data(
            randomness.stream_keys(randomness.sample_keys(seed, jnp.int32(at), name, positions), s)
        )
        for seed in (0, 1)
        for at in (0, 1, 100)
        for name in ("train", "other")
        for s in ("augment", "dropout")
    ]
    rows = np.concatenate(draws)
    assert len(np.unique(rows, axis=0)) == len(rows) == 24 * 16


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    label = jnp.array([0, 1])
    expected = -np.log([0.5, 0.1])
    np.testing.assert_allclose(cross_entropy(logits, label)[0], expected, rtol=1e-6)
    # 0.3 over three classes: 0.8 on the label, 0.1 on each of the others.
    smooth = [
        -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)),
        -(0.8 * np.log(0.1) + 0.1 * np.log(0.1) + 0.1 * np.log(0.8)),
    ]
    np.testing.assert_allclose(
        cross_entropy(logits, label, label_smoothing=0.3)[0], smooth, rtol=1e-6
    )


def test_cross_entropy_is_float32_and_finite_for_extreme_logits():
    logits = jnp.array([[3e4, -3e4], [-3e4, 3e4]], jnp.bfloat16)
    loss, _ = cross_entropy(logits, jnp.array([0, 0]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [0.0, 6e4], rtol=1e-2)
