import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow import corners

from sft_jax.config.run import Duration, MixupConfig
from sft_jax.models import registry
from sft_jax.models.blocks import gather_in_blocks
from sft_jax.tasks import from_config
from sft_jax.training import evaluation, sharding, state, step
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.trainer import apply_function

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
# Whose blocks gather their parameters when they run, and again where they are recomputed.
LATE = "streamed-2x2"
# With mixup from the second step on, in groups of two rows. `accumulate` takes whole groups.
MIXUP_LAYOUTS = {
    "mixup-1": ("xla", 1, "jit", {}),
    "mixup-8": ("xla", 8, "jit", {}),
    "mixup-2-accumulate-4": ("xla", 2, "jit", {"accumulate": 4}),
    "mixup-pmap-4": ("xla", 4, "pmap", {}),
}
LAYOUTS |= MIXUP_LAYOUTS
MIXUP = {"mode": "any", "warmup": Duration(1.0, "steps"), "groups": 8}
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
        self.rows = 16 if name in MIXUP_LAYOUTS else 8
        mixup = MixupConfig(**MIXUP) if name in MIXUP_LAYOUTS else MixupConfig()
        config = tiny.config(implementation or "xla", mixup=mixup, batch_size=self.rows, **train)
        self.mesh = sharding.make_mesh(config.train, self.devices)
        changes = {"apply": tiny.noisy_apply} if self.fast else {}
        changes["mixup"] = MixupPlan.of(config, 5, count)
        if name == LATE:
            model = dataclasses.replace(config.model, remat="block")
            config = dataclasses.replace(config, model=model)
            changes["gathering"] = gather_in_blocks
        self.step_config = tiny.step_config(config, **changes)
        first, batch = self.state(), self.put(self.batch())
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

    def batch(self, seed=0, padding=2):
        return self.tiny.batch(seed, self.rows, self.rows - padding)

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
            batch = self.put(self.batch(seed=i, padding=i))
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
    """Layouts by name, each compiled at its first use."""
    return functools.cache(lambda name: Layout(tiny, name).compile())


def assert_close(got, expected):
    """Every leaf to 1e-5 of its largest entry; a leaf that is zero but for rounding, to 1e-7 of
    the largest of all."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(a, b):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max() + 1e-7 * largest

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize(
    "name",
    corners(
        [n for n in (*FAST_LAYOUTS, *LAYOUTS) if n not in ("xla-1", "mixup-1", "jit-1")],
        *("jit-8", "jit-1-accumulate-4", "jit-1x4-accumulate-2", "pmap-2-accumulate-4"),
        *("xla-2x2-accumulate-2", "streamed-2x2", "mixup-2-accumulate-4"),
    ),
)
def test_every_layout_takes_the_same_steps(layouts, name):
    history, last = layouts(name).outcome
    kind = "mixup" if name in MIXUP_LAYOUTS else "xla" if name in LAYOUTS else "jit"
    expected_history, expected = layouts(f"{kind}-1").outcome
    for i, (got, wanted) in enumerate(zip(history, expected_history, strict=True)):
        assert got["metrics"].keys() == wanted["metrics"].keys()
        assert got["metrics"]["samples"][0] == layouts(name).rows - i
        assert got["metrics"]["top1"] == wanted["metrics"]["top1"]
        for metric, value in wanted["metrics"].items():
            np.testing.assert_allclose(got["metrics"][metric], value, rtol=1e-5, err_msg=metric)
        assert_close(got["gradients"], wanted["gradients"])
    assert last.step == STEPS
    assert_close(last.params, expected.params)
    assert_close(last.opt_state, expected.opt_state)


def test_mixup_changes_the_steps_behind_its_warmup_alone(layouts, tiny):
    layout = layouts("mixup-1")
    config = dataclasses.replace(layout.step_config, mixup=None)
    plain = jax.jit(functools.partial(step.train_step, config=config))
    current, history = first_state(tiny), layout.outcome[0]
    for i in range(STEPS):
        current, metrics = plain(current, layout.batch(seed=i, padding=i))
        gradients = jax.device_get(current.opt_state[0])
        if i == 0:
            assert_close(history[0]["gradients"], gradients)
            np.testing.assert_allclose(history[0]["metrics"]["loss"], metrics["loss"], rtol=1e-5)
        else:
            assert abs(history[i]["metrics"]["loss"][0] / metrics["loss"][0] - 1) > 1e-3


def test_the_metrics_of_a_step(layouts):
    history, _ = layouts("xla-1").outcome
    assert len({float(entry["metrics"]["loss"][0]) for entry in history}) == STEPS
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(history[0]["gradients"])))
    assert history[0]["metrics"]["gradient_norm"][0] == pytest.approx(norm, rel=1e-5)
    rates = [entry["metrics"]["learning_rate"][0] for entry in history]
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


@pytest.mark.parametrize(
    "name",
    corners(["mixup-2-accumulate-4", "xla-4", "streamed-4", "mixup-8"], "mixup-2-accumulate-4"),
)
def test_gradients_and_metrics_are_all_that_crosses_devices(layouts, name):
    found = collectives(layouts(name).step.as_text())
    assert {operation for operation, _ in found} == {"all-reduce"}
    sums = 6  # loss and top1 with their counts, count, samples
    expected = num_elements(layouts(name).state().params) + sums
    assert sum(size for _, size in found) == expected


@pytest.mark.parametrize("name", ["xla-2x2-accumulate-2", "streamed-2x2"])
def test_fsdp_adds_parameter_gathers_alone(layouts, name):
    layout = layouts(name)
    params = layout.state().params
    split = [leaf for leaf in jax.tree.leaves(params) if "fsdp" in leaf.sharding.spec]
    assert len(split) >= 12
    sizes = {"all-gather": [], "reduce-scatter": [], "all-reduce": []}
    for operation, size in collectives(layout.step.as_text()):
        sizes[operation].append(size)
    whole, scattered = Counter(leaf.size for leaf in split), Counter(sizes["reduce-scatter"])
    gathered = Counter(sizes["all-gather"])
    if name == LATE:
        # Those of blocks may come once more for the backward pass (test_gathers.py).
        assert whole <= gathered <= whole + whole
    else:
        assert gathered == whole
    # Of two parts each device has the sum of its own.
    assert scattered == Counter({size // 2: count for size, count in whole.items()})
    # The other gradients, what "data" adds to these, and the metrics; two norms of split gradients.
    reduced = num_elements(params) - sum(leaf.size for leaf in split) // 2 + 6
    assert sum(sizes["all-reduce"]) == reduced + 2 * len(split)


@pytest.mark.parametrize(
    "name", corners(["xla-4", "xla-2x2-accumulate-2", "streamed-4"], "xla-2x2-accumulate-2")
)
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
    batch["weight"][6:], batch["id"][6:] = 0, -1
    got, got_metrics = layout.step(layout.state(), layout.put(batch))
    expected, metrics = layout.step(layout.state(), layout.put(tiny.batch(real=6)))
    assert metrics["samples"][0] == 6
    assert jax.tree.map(float, got_metrics) == jax.tree.map(float, metrics)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(expected))


@pytest.mark.parametrize("count", [1, 4])
def test_eval_outputs_are_the_models_own(tiny, devices, count):
    config = tiny.config()
    model = registry.build(config)
    mesh = sharding.make_mesh(config.train, devices[:count])
    params = first_state(tiny).params
    shardings = sharding.parameter_shardings(params, mesh)
    eval_step = evaluation.compile_eval_step(
        apply_function(model), from_config(tiny.config()), mesh
    )
    batch = tiny.batch()
    with jax.transfer_guard("disallow"):
        placed = jax.device_put(params, shardings)
        outputs = eval_step(placed, sharding.put_batch(batch, mesh))
        again = eval_step(placed, sharding.put_batch(batch, mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(outputs), jax.device_get(again))
    expected = jax.jit(model.apply)({"params": params}, batch["inputs"], batch["mask"])
    np.testing.assert_allclose(outputs["outputs"], expected.logits, rtol=1e-5, atol=1e-6)
    probabilities = jax.nn.softmax(expected.logits)
    np.testing.assert_allclose(
        outputs["answers"]["probabilities"], probabilities, rtol=1e-5, atol=1e-6
    )
    loss = -np.log(np.asarray(probabilities)[np.arange(8), batch["target"]])
    np.testing.assert_allclose(outputs["sums"]["loss"][0], loss, rtol=1e-4)
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
