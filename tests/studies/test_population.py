"""The mapping of one run's step over many, with a model that compiles in no time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.studies.population import Members, Population, stack_folds, take_rows
from sft_jax.training import step


@pytest.fixture
def folds(tiny):
    """Two folds of other sizes."""
    return [tiny.batch(seed=1, rows=8, real=6), tiny.batch(seed=2, rows=12, real=12)]


def on_device(folds):
    return jax.tree.map(jnp.asarray, stack_folds(folds))


def init_of(tiny, optimizer):
    def init(seed):
        first = tiny.linear_state(optimizer)
        shift = jax.random.normal(jax.random.key(seed), first.params["bias"].shape)
        return first.replace(params=first.params | {"bias": shift})

    return init


ROWS = np.array([[0, 1, 2, 3], [3, 1, -1, -1], [11, 10, 5, 0], [2, 4, 6, -1]], np.int32)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_step_of_every_run_is_its_step_alone(tiny, folds, vectorized):
    """Seeds, folds and rows are each run's own, dropout and augmentation included."""
    config = tiny.step_config(tiny.config(), apply=tiny.noisy_apply)
    init = init_of(tiny, config.optimizer)
    population = Population.of(config, init, jax.devices()[:2], vectorized=vectorized)
    seeds, fold = np.array([7, 8, 7, 9], np.int32), np.array([0, 0, 1, 1], np.int32)
    members = population.put(Members(seed=seeds, fold=fold), runs=True)
    data = population.put(stack_folds(folds), runs=False)
    states = population.create(members)
    rows = population.put(ROWS, runs=True)
    for _ in range(2):
        states, metrics = population.step(states, members, rows, data)
    for i, seed in enumerate(seeds):
        state = init(int(seed))
        own = dataclasses.replace(config, seed=int(seed))
        batch = take_rows(on_device(folds), *map(jnp.asarray, (fold[i], ROWS[i])))
        alone = jax.jit(lambda s, b, own=own: step.train_step(s, b, config=own))
        for _ in range(2):
            state, expected = alone(state, batch)
        got = jax.tree.map(lambda x, i=i: x[i], (states.params, metrics))
        assert int(states.step[i]) == 2
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            got,
            (state.params, expected),
        )
    biases = np.asarray(states.params["bias"])
    assert len(np.unique(biases, axis=0)) == 4


def test_rows_are_those_of_the_fold_and_padding_is_empty(folds):
    data = on_device(folds)
    assert data["target"].shape == (2, 12)
    batch = jax.tree.map(np.asarray, take_rows(data, jnp.int32(0), jnp.array([5, -1, 0])))
    for name, x in folds[0]["inputs"].items():
        np.testing.assert_array_equal(batch["inputs"][name][[0, 2]], x[[5, 0]])
        assert not batch["inputs"][name][1].any()
        assert not batch["mask"][name][1].any()
    assert batch["weight"].tolist() == [1.0, 0.0, 1.0]
    assert batch["id"].tolist() == [5, -1, 0]
    assert batch["target"][1] == 0
    assert data["weight"][0, 8:].sum() == 0


def test_better_parameters_are_kept_run_by_run(tiny, folds):
    config = tiny.step_config(tiny.config(), apply=tiny.linear_apply)
    population = Population.of(config, init_of(tiny, config.optimizer), jax.devices()[:2])
    kept = population.put({"x": np.arange(8.0).reshape(4, 2)}, runs=True)
    new = population.put({"x": -np.ones((4, 2))}, runs=True)
    better = population.put(np.array([True, False, False, True]), runs=True)
    got = np.asarray(population.keep(kept, new, better)["x"])
    np.testing.assert_array_equal(got, [[-1, -1], [2, 3], [4, 5], [-1, -1]])


def test_logits_come_batch_after_batch(tiny, folds):
    config = tiny.step_config(tiny.config(), apply=tiny.linear_apply)
    population = Population.of(config, init_of(tiny, config.optimizer), jax.devices()[:2])
    seeds, fold = np.array([1, 2], np.int32), np.array([0, 1], np.int32)
    members = population.put(Members(seed=seeds, fold=fold), runs=True)
    data = population.put(stack_folds(folds), runs=False)
    params = population.create(members).params
    rows = np.array([[[0, 1], [2, -1]], [[11, 0], [1, 2]]], np.int32)
    got = np.asarray(population.outputs(params, members, population.put(rows, runs=True), data))
    for run in range(2):
        own = jax.tree.map(lambda x, run=run: x[run], params)
        batch = folds[run]
        whole = tiny.linear_apply(own, batch["inputs"], batch["mask"], None).logits
        for part in range(2):
            real = rows[run, part] >= 0
            expected = np.asarray(whole)[rows[run, part][real]]
            np.testing.assert_allclose(got[run, part][real], expected, rtol=1e-5, atol=1e-6)
