import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sft_jax.config.io import load
from sft_jax.config.run import TrainConfig
from sft_jax.efficiency.variants import variant
from sft_jax.models import registry
from sft_jax.training import sharding, state
from sft_jax.training.optimizer import build_optimizer, learning_rate
from sft_jax.types import ConfigError


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (1, -1, (1, 8)), (-1, 2, (4, 2)), (2, 4, (2, 4)), (8, -1, (8, 1))],
)
def test_a_mesh_takes_what_is_left(devices, data, fsdp, shape):
    config = TrainConfig(batch_size=16, data_parallel=data, fsdp_parallel=fsdp)
    mesh = sharding.make_mesh(config, devices)
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "fsdp"), shape)
    assert sharding.describe_mesh(mesh) == f"8 x cpu, data {shape[0]}, fsdp {shape[1]}"


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (3, -1), (-1, -1), (-1, 16), (4, 1)])
def test_a_mesh_that_does_not_fit_names_the_settings(devices, data, fsdp):
    config = TrainConfig(batch_size=16, data_parallel=data, fsdp_parallel=fsdp)
    with pytest.raises(ConfigError, match=rf"data_parallel.*given {data} and {fsdp}.*product of 8"):
        sharding.make_mesh(config, devices)


@pytest.mark.parametrize(
    ("batch", "accumulate", "advice"),
    [(12, 1, "multiple of 8 .*use 8 or 16"), (24, 2, "multiple of 16 .*use 16 or 32"), (4, 1, "8")],
)
def test_a_batch_that_cannot_be_split_says_which_can(devices, batch, accumulate, advice):
    config = TrainConfig(batch_size=batch, accumulate=accumulate)
    with pytest.raises(ConfigError, match=rf"batch_size: given {batch}.*{advice}"):
        sharding.make_mesh(config, devices)


def test_a_batch_smaller_than_the_devices_is_not_advised_to_be_zero(devices):
    with pytest.raises(ConfigError, match=r"; use 8$"):
        sharding.make_mesh(TrainConfig(batch_size=4), devices)


def specs_by_path(tree, mesh):
    shardings = sharding.parameter_shardings(tree, mesh)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)
    }


@pytest.fixture(scope="module")
def abstract(tiny):
    config = tiny.config()
    optimizer = build_optimizer(config.optimizer, learning_rate(config.optimizer, 10, 0))
    return jax.eval_shape(state.state_initializer(registry.build(config), optimizer, 0))


def test_one_device_a_replica_keeps_everything_whole(abstract, devices):
    mesh = sharding.make_mesh(TrainConfig(batch_size=8), devices)
    specs = specs_by_path(abstract, mesh)
    assert all(axis is None for spec in specs.values() for axis in spec)


def test_rules_split_kernels_over_fsdp_and_moments_follow(abstract, devices):
    mesh = sharding.make_mesh(TrainConfig(batch_size=8, fsdp_parallel=2), devices[:4])
    specs = specs_by_path(abstract, mesh)
    params = {p.removeprefix("params/"): s for p, s in specs.items() if p.startswith("params/")}
    none = None
    assert params["encoder_m0/block_0/mlp/in/kernel"] == PartitionSpec("fsdp", none)
    assert params["encoder_m0/block_0/attention/attention/qkv_kernel"] == PartitionSpec(
        "fsdp", none, none, none
    )
    # By width, since heads are few.
    assert params["encoder_m0/block_0/attention/attention/out/kernel"] == PartitionSpec(
        none, none, "fsdp"
    )
    assert params["encoder_m0/tokenizer/positions"] == PartitionSpec(none, none, "fsdp")
    # The leading axis of the fused blocks counts layers.
    assert params["fusion/block/mlp/in/kernel"] == PartitionSpec(none, "fsdp", none)
    assert params["fusion/block/mlp/in/bias"] == PartitionSpec(none, none)
    # Three features do not split in two.
    assert params["encoder_m1/tokenizer/proj/kernel"] == PartitionSpec(none, none)
    assert params["head/linear/bias"] == PartitionSpec(none)
    for moment in ("mu", "nu"):
        followed = {p.split(f"/{moment}/")[1]: s for p, s in specs.items() if f"/{moment}/" in p}
        assert followed == params


@functools.cache
def shapes_at_the_width_of_vit_base(name):
    config = variant(load(Path(__file__).parents[2] / "configs" / "av_base.py"), name)
    model = registry.build(config)
    inputs = state.example_inputs(config.modalities)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("parts", [2, 8, 16, 64, 256])
@pytest.mark.parametrize("name", ["sft", "dense", "mbt", "late", "concat", "mult"])
def test_at_the_width_of_vit_base_nothing_large_stays_whole(name, parts):
    """Biases and norms aside; stacks have an axis of layers in front of those of the rules."""
    shapes = shapes_at_the_width_of_vit_base(name)
    whole = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if sharding.split_axis(sharding.path_name(path), leaf.shape, parts) is None
    )
    assert 0 < whole < 5e-3 * sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_first_state_is_born_in_its_shardings_and_equal_on_all_meshes(tiny, devices):
    config = tiny.config()
    optimizer = build_optimizer(config.optimizer, learning_rate(config.optimizer, 10, 0))
    init = state.state_initializer(registry.build(config), optimizer, 5)
    states = []
    for count, fsdp in ((1, 1), (4, 2)):
        mesh = sharding.make_mesh(TrainConfig(batch_size=8, fsdp_parallel=fsdp), devices[:count])
        first, abstract = state.create_state(init, mesh)
        described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), first)
        assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract)
        states.append(jax.device_get(first))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (states[0].step, states[0].step.dtype) == (0, np.int32)
    assert (states[0].lr_scale, states[0].lr_scale.dtype) == (1, np.float32)


def test_put_batch_splits_rows_over_both_axes_in_order(devices):
    mesh = sharding.make_mesh(TrainConfig(batch_size=8, fsdp_parallel=2), devices[:4])
    batch = {"x": np.arange(16.0, dtype=np.float32).reshape(8, 2), "y": np.arange(8)}
    with jax.transfer_guard("disallow"):
        placed = sharding.put_batch(batch, mesh)
    assert placed["x"].sharding.spec == PartitionSpec(("data", "fsdp"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), batch)
    for shard in placed["x"].addressable_shards:
        position = mesh.devices.ravel().tolist().index(shard.device)
        np.testing.assert_array_equal(shard.data, batch["x"][2 * position : 2 * position + 2])


def test_example_inputs_fit_every_tokenizer(tiny):
    from sft_jax.config.modality import ModalitySpec

    specs = (*tiny.specs, ModalitySpec(name="w", length=5, feature_dim=9, tokenizer="token", k=2))
    inputs, mask = state.example_inputs(specs)
    assert {name: (x.shape, x.dtype) for name, x in inputs.items()} == {
        "m0": ((1, 12, 4), jnp.float32),
        "m1": ((1, 20, 3), jnp.float32),
        "w": ((1, 5), jnp.int32),
    }
    assert all(m.all() and m.dtype == bool for m in mask.values())
