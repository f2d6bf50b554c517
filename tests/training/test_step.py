import concurrent.futures
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.config import AugmentConfig, OptimizerConfig, TrainConfig
from sft_jax.models import registry
from sft_jax.training import losses, run, sharding, state, step
from sft_jax.training.optimizer import build_optimizer, learning_rate

STEPS = 3
# name: implementation, devices, how it is mapped, options of the training
LAYOUTS = {
    "xla-1": ("xla", 1, "jit", {}),
    "xla-4": ("xla", 4, "jit", {}),
    "xla-pmap-8": ("xla", 8, "pmap", {}),
    "xla-2x2-accumulate-2": ("xla", 4, "jit", {"fsdp_parallel": 2, "accumulate": 2}),
    "streamed-4": ("streamed", 4, "jit", {}),
    "streamed-2x2": ("streamed", 4, "jit", {"fsdp_parallel": 2}),
}
# As many again around a model that compiles fast, `implementation` being None.
FAST_LAYOUTS = {
    "jit-1": (None, 1, "jit", {}),
    "jit-2": (None, 2, "jit", {}),
    "jit-4": (None, 4, "jit", {}),
    "jit-8": (None, 8, "jit", {}),
    "jit-1-accumulate-2": (None, 1, "jit", {"accumulate": 2}),
    "jit-1-accumulate-4": (None, 1, "jit", {"accumulate": 4}),
    "jit-2-accumulate-4": (None, 2, "jit", {"accumulate": 4}),
    "jit-4-accumulate-2": (None, 4, "jit", {"accumulate": 2}),
    "jit-2x2": (None, 4, "jit", {"fsdp_parallel": 2}),
    "jit-1x4-accumulate-2": (None, 4, "jit", {"fsdp_parallel": 4, "accumulate": 2}),
    "pmap-1": (None, 1, "pmap", {}),
    "pmap-2-accumulate-4": (None, 2, "pmap", {"accumulate": 4}),
    "pmap-4": (None, 4, "pmap", {}),
    "pmap-8": (None, 8, "pmap", {}),
}
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


class Layout:
    """A step compiled ahead for one layout."""

    def __init__(self, tiny, name):
        implementation, count, self.mapped, train = (LAYOUTS | FAST_LAYOUTS)[name]
        self.tiny, self.devices, self.fast = tiny, jax.devices()[:count], implementation is None
        config = tiny.config(implementation or "xla", **train)
        self.mesh = sharding.make_mesh(config.train, self.devices)
        changes = {"apply": tiny.noisy_apply} if self.fast else {}
        self.step_config = tiny.step_config(config, **changes)
        first, batch = self.state(), self.put(tiny.batch())
        if self.mapped == "jit":
            compiled = step.compile_train_step(self.step_config, self.mesh, first)
        else:
            mapped = functools.partial(step.train_step, config=self.step_config, axes=("data",))
            compiled = jax.pmap(mapped, axis_name="data", devices=self.devices, donate_argnums=0)
        self.lowered = compiled.lower(first, batch)

    def compile(self):
        self.step = self.lowered.compile()
        return self

    def state(self):
        if self.fast:
            first = self.tiny.linear_state(self.tiny.optimizer())
        else:
            first = first_state(self.tiny)
        if self.mapped == "jit":
            return self.tiny.put_state(first, self.mesh)
        return jax.tree.map(lambda x: jnp.stack([x] * len(self.devices)), first)

    def put(self, batch):
        if self.mapped == "jit":
            return sharding.put_batch(batch, self.mesh)
        devices = len(self.devices)
        return jax.tree.map(lambda x: jnp.asarray(x).reshape(devices, -1, *x.shape[1:]), batch)

    def fetch(self, tree):
        tree = jax.device_get(tree)
        if self.mapped == "jit":
            return tree
        for leaf in jax.tree.leaves(tree):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
        return jax.tree.map(lambda x: x[0], tree)

    @functools.cached_property
    def outcome(self):
        """Metrics and gradients of each step on ragged batches, and the state after the last."""
        current, history = self.state(), []
        for i in range(STEPS):
            batch = self.put(self.tiny.batch(seed=i, real=8 - i))
            # pmap moves arguments between devices by itself; the compiled step must not.
            with jax.transfer_guard("disallow" if self.mapped == "jit" else "allow"):
                current, metrics = self.step(current, batch)
            gradients = self.fetch(current.opt_state[0])
            history.append({"metrics": self.fetch(metrics), "gradients": gradients})
        return history, self.fetch(current)


@functools.cache
def _first(model_config, optimizer):
    init = state.state_initializer(registry.build(model_config), optimizer(), 3)
    return jax.device_get(jax.jit(init)())


def first_state(tiny):
    return jax.tree.map(jnp.asarray, _first(tiny.config(), tiny.optimizer))


@pytest.fixture(scope="module")
def layouts(tiny):
    """All layouts by name; the slow ones are compiled on two threads from the first use on."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(Layout(tiny, name).compile) for name in LAYOUTS}
        fast = functools.cache(lambda name: Layout(tiny, name).compile())
        yield lambda name: futures[name].result() if name in futures else fast(name)


def assert_close(got, expected):
    """Every leaf to 1e-5 of its largest entry; a leaf that is zero but for rounding, to 1e-7 of
    the largest of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(a, b):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max() + 1e-7 * largest

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize("name", [*list(FAST_LAYOUTS)[1:], *list(LAYOUTS)[1:]])
def test_every_layout_takes_the_same_steps(layouts, name):
    history, last = layouts(name).outcome
    expected_history, expected = layouts("xla-1" if name in LAYOUTS else "jit-1").outcome
    for i, (got, wanted) in enumerate(zip(history, expected_history, strict=True)):
        assert got["metrics"].keys() == wanted["metrics"].keys()
        assert (got["metrics"]["count"], got["metrics"]["top1"]) == (
            8 - i,
            wanted["metrics"]["top1"],
        )
        for metric, value in wanted["metrics"].items():
            np.testing.assert_allclose(got["metrics"][metric], value, rtol=1e-5, err_msg=metric)
        assert_close(got["gradients"], wanted["gradients"])
    assert last.step == STEPS
    assert_close(last.params, expected.params)
    assert_close(last.opt_state, expected.opt_state)


def test_the_metrics_of_a_step(layouts):
    history, _ = layouts("xla-1").outcome
    assert len({float(entry["metrics"]["loss"]) for entry in history}) == STEPS
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(history[0]["gradients"])))
    assert history[0]["metrics"]["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    rates = [entry["metrics"]["learning_rate"] for entry in history]
    np.testing.assert_allclose(rates, [1e-2, 1e-2 / 2, 1e-2 / 3], rtol=1e-6)


def collectives(text):
    """`(operation, elements of its result)` of every collective in a compiled text."""
    found = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({COLLECTIVES})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
            found.append((match[2], sum(sizes)))
    return found


def num_elements(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["xla-4", "streamed-4"])
def test_gradients_and_metrics_are_all_that_crosses_devices(layouts, name):
    found = collectives(layouts(name).step.as_text())
    assert {operation for operation, _ in found} == {"all-reduce"}
    sums = 3  # loss, top1, count
    expected = num_elements(layouts(name).state().params) + sums
    assert sum(size for _, size in found) == expected


@pytest.mark.parametrize("name", ["xla-2x2-accumulate-2", "streamed-2x2"])
def test_fsdp_adds_parameter_gathers_alone(layouts, name):
    layout = layouts(name)
    params = layout.state().params
    split = [leaf for leaf in jax.tree.leaves(params) if "fsdp" in leaf.sharding.spec]
    assert len(split) >= 12
    found = collectives(layout.step.as_text())
    assert {operation for operation, _ in found} == {"all-reduce", "all-gather"}
    gathered = sorted(size for operation, size in found if operation == "all-gather")
    assert gathered == sorted(leaf.size for leaf in split)
    reduced = sum(size for operation, size in found if operation == "all-reduce")
    assert reduced == num_elements(params) + 3


@pytest.mark.parametrize("name", ["xla-4", "xla-2x2-accumulate-2", "streamed-4"])
def test_every_leaf_of_the_state_is_donated(layouts, name):
    layout = layouts(name)
    current, batch = layout.state(), layout.put(layout.tiny.batch())
    leaves = jax.tree.leaves(current)
    aliases = layout.step.as_text().split("input_output_alias={", 1)[1].split("entry_comp", 1)[0]
    assert len(re.findall(r"(?:may|must)-alias", aliases)) == len(leaves)
    after, _ = layout.step(current, batch)
    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, batch)))
    shardings = [leaf.sharding for leaf in jax.tree.leaves(after)]
    assert shardings == [leaf.sharding for leaf in leaves]


def test_padding_rows_contribute_nothing(layouts, tiny):
    layout, batch = layouts("xla-1"), tiny.batch(real=6)
    garbage = tiny.batch(seed=9, real=8)
    for leaf, other in zip(jax.tree.leaves(batch), jax.tree.leaves(garbage), strict=True):
        leaf[6:] = other[6:]
    batch["weight"][6:] = 0
    got, got_metrics = layout.step(layout.state(), layout.put(batch))
    expected, metrics = layout.step(layout.state(), layout.put(tiny.batch(real=6)))
    assert metrics["count"] == 6
    assert jax.tree.map(float, got_metrics) == jax.tree.map(float, metrics)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(expected))


# The step around a model that compiles in no time.


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
    y = 0.7 * np.eye(3)[batch["label"][:real]] + 0.3 / 3
    after, metrics = compiled(first, sharding.put_batch(batch, mesh))
    assert metrics["loss"] == pytest.approx(-(y * np.log(p)).sum(), rel=1e-5)
    assert metrics["top1"] == (p.argmax(axis=1) == batch["label"][:real]).sum()
    gradient = x.T @ (p - y) / real
    np.testing.assert_allclose(after.params["kernel"], kernel - 0.1 * gradient, rtol=1e-5)
    bias = -0.1 * (p - y).mean(axis=0)
    np.testing.assert_allclose(after.params["bias"], bias, rtol=1e-5, atol=1e-7)


def test_a_batch_without_any_real_row_changes_nothing(tiny, devices):
    compiled, first, mesh = linear_step(tiny, devices[:2])
    before = jax.device_get(first.params)
    after, metrics = compiled(first, sharding.put_batch(tiny.batch(real=0), mesh))
    assert (metrics["count"], metrics["loss"], metrics["gradient_norm"]) == (0, 0, 0)
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
    assert part_metrics["learning_rate"] == pytest.approx(0.1 * float(metrics["learning_rate"]))


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
        keys = step.sample_keys(3, jnp.int32(i), "train", jnp.arange(8))
        keys = step._stream(keys, "dropout")
        logits = apply(None, None, None, keys).logits
        batch = jax.tree.map(jnp.asarray, tiny.batch())
        expected = (batch["weight"] * losses.cross_entropy(logits, batch["label"])).sum()
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
        seen.append(float(metrics["loss"]))
    assert seen[0] != seen[1]


def test_sample_keys_share_nothing():
    positions = jnp.arange(16)
    draws = [
        jax.random.key_data(step._stream(step.sample_keys(seed, jnp.int32(at), name, positions), s))
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
    np.testing.assert_allclose(losses.cross_entropy(logits, label), expected, rtol=1e-6)
    # 0.3 over three classes: 0.8 on the label, 0.1 on each of the others.
    smooth = [
        -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)),
        -(0.8 * np.log(0.1) + 0.1 * np.log(0.1) + 0.1 * np.log(0.8)),
    ]
    np.testing.assert_allclose(losses.cross_entropy(logits, label, 0.3), smooth, rtol=1e-6)


def test_cross_entropy_is_float32_and_finite_for_extreme_logits():
    logits = jnp.array([[3e4, -3e4], [-3e4, 3e4]], jnp.bfloat16)
    loss = losses.cross_entropy(logits, jnp.array([0, 0]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [0.0, 6e4], rtol=1e-2)


@pytest.mark.parametrize("count", [1, 4])
def test_eval_outputs_are_the_models_own(tiny, devices, count):
    config = tiny.config()
    model = registry.build(config)
    mesh = sharding.make_mesh(config.train, devices[:count])
    params = first_state(tiny).params
    shardings = sharding.parameter_shardings(params, mesh)
    eval_step = step.compile_eval_step(run.apply_function(model), mesh)
    batch = tiny.batch()
    with jax.transfer_guard("disallow"):
        placed = jax.device_put(params, shardings)
        outputs = eval_step(placed, sharding.put_batch(batch, mesh))
        again = eval_step(placed, sharding.put_batch(batch, mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(outputs), jax.device_get(again))
    expected = jax.jit(model.apply)({"params": params}, batch["inputs"], batch["mask"])
    probabilities = jax.nn.softmax(expected.logits)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, rtol=1e-5, atol=1e-6)
    loss = -np.log(np.asarray(probabilities)[np.arange(8), batch["label"]])
    np.testing.assert_allclose(outputs["loss"], loss, rtol=1e-4)
    assert outputs["kept"].keys() == {"m0", "m1"}
    for name, kept in outputs["kept"].items():
        np.testing.assert_array_equal(kept["indices"], expected.pooled[name].indices)
        np.testing.assert_allclose(
            kept["saliency"], expected.pooled[name].saliency, rtol=1e-5, atol=1e-7
        )
    assert (np.asarray(outputs["kept"]["m0"]["indices"])[1] == -1).all()  # the missing modality
    assert (
        collectives(eval_step.lower(placed, sharding.put_batch(batch, mesh)).compile().as_text())
        == []
    )
