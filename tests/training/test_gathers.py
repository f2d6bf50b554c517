"""What is gathered of split parameters, read off the traced step."""

import dataclasses
import re
from collections import Counter

import jax
import pytest
from jax.extend import core
from slow import corners

from sft_jax.models import registry
from sft_jax.tasks import from_config
from sft_jax.training import sharding, state, step
from sft_jax.training.trainer import Trainer

LAYERS = 3
IN_BLOCKS = re.compile(r"/(block_0|block_m\d|block|pooling)/")
# Their parameters have an axis of layers in front.
STACKS = re.compile(r"/block/|^fusion/")


def all_gathers(jaxpr):
    """Elements of the result of every gather in a program, loop bodies counted once."""
    found = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "all_gather":
            found[eqn.outvars[0].aval.size] += 1
        for inner in core.jaxprs_in_params(eqn.params):
            found += all_gathers(inner)
    return found


@pytest.mark.parametrize("name", corners(["sft", "mbt"], "sft"))
@pytest.mark.parametrize("when", ["before", "none", "block"])
def test_blocks_gather_their_own_layer_and_again_where_they_are_recomputed(tiny, name, when):
    config = tiny.config(fsdp_parallel=4, preset="modern")
    model = dataclasses.replace(
        config.model,
        name=name,
        num_post_layers=LAYERS,
        remat="none" if when == "before" else when,
    )
    config = dataclasses.replace(config, model=model)
    mesh = sharding.make_mesh(config.train, jax.devices()[:4])
    model, optimizer = registry.build(config), tiny.optimizer()
    abstract = state.abstract_state(state.state_initializer(model, optimizer, 0), mesh)
    made = dataclasses.replace(
        Trainer.of(config, from_config(config), 1, mesh).step,
        optimizer=optimizer,
        schedule=lambda count: 1e-2,
    )
    if when == "before":
        made = dataclasses.replace(made, gathering=step.gather_before)
    traced = step.compile_train_step(made, mesh, abstract).trace(abstract, tiny.batch())
    split = sharding.split_axes(abstract.params, mesh)
    expected = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params):
        path = sharding.path_name(path)
        if path not in split:
            continue
        own = when != "before" and IN_BLOCKS.search(path)
        layers = leaf.shape[0] if own and STACKS.search(path) else 1
        expected[leaf.size // layers] += 2 if own and when == "block" else 1
    assert all_gathers(traced.jaxpr.jaxpr) == expected
