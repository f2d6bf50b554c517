"""A step of training on 1, 2, 4 and 8 devices is one step, whatever the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sft_jax.config.run import AugmentConfig, TrainConfig
from sft_jax.tasks.classification import Classification
from sft_jax.training import sharding, state, step

COUNTS = (1, 2, 4, 8)
RATE = 0.5


@st.composite
def shapes(draw):
    """Rows, how many of them are real, micro-batches, classes, `(length, features)` by modality."""
    accumulate = draw(st.integers(1, 2))
    rows = 8 * accumulate * draw(st.integers(1, 2))
    real = draw(st.integers(1, rows))
    shape = st.tuples(st.integers(1, 9), st.integers(1, 5))
    sizes = draw(st.lists(shape, min_size=1, max_size=3))
    return rows, real, accumulate, draw(st.integers(2, 5)), dict(zip("abc", sizes, strict=False))


def draw_batch(seed, rows, real, classes, sizes):
    """Ragged, with rows that pad the batch."""
    rng = np.random.default_rng(seed)
    present = np.arange(rows) < real
    inputs, mask = {}, {}
    for name, (length, features) in sizes.items():
        keep = np.arange(length) < rng.integers(1, length + 1, (rows, 1))
        mask[name] = keep & present[:, None]
        x = rng.normal(size=(rows, length, features)).astype(np.float32)
        inputs[name] = np.where(mask[name][..., None], x, np.float32(0))
    return {
        "inputs": inputs,
        "mask": mask,
        "target": np.where(present, rng.integers(classes, size=rows), 0).astype(np.int32),
        "weight": present.astype(np.float32),
        "id": np.where(present, np.arange(rows), -1).astype(np.int32),
    }


def apply(output):
    """Dropout of the means over time, and one layer that is not linear."""

    def model(params, inputs, mask, keys):
        means = [
            jnp.where(mask[name][..., None], x, 0).sum(axis=1) / x.shape[1]
            for name, x in inputs.items()
        ]
        features = jnp.concatenate(means, axis=1)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, features.shape[1:]))(keys)
        hidden = jnp.tanh(jnp.where(keep, features, 0) @ params["kernel"])
        return output(hidden * params["scale"] + params["bias"], {})

    return model


def take_step(tiny, count, shape, seed):
    """Metrics of a step, and the gradients, which plain descent leaves in the parameters."""
    rows, real, accumulate, classes, sizes = shape
    train = TrainConfig(batch_size=rows, accumulate=accumulate)
    mesh = sharding.make_mesh(train, jax.devices()[:count])
    config = step.StepConfig(
        apply=apply(tiny.output),
        task=Classification(class_names=tuple(map(str, range(classes))), label_smoothing=0.1),
        optimizer=optax.sgd(RATE),
        schedule=lambda count: RATE,
        augmentation=AugmentConfig(),
        accumulate=accumulate,
        seed=3,
    )
    width = sum(features for _, features in sizes.values())
    params = {
        "kernel": np.random.default_rng(seed).normal(size=(width, classes)).astype(np.float32),
        "scale": np.ones(classes, np.float32),
        "bias": np.zeros(classes, np.float32),
    }
    first = state.TrainState(
        step=np.zeros((), np.int32),
        params=params,
        opt_state=config.optimizer.init(params),
        lr_scale=np.ones((), np.float32),
    )
    placed = tiny.put_state(first, mesh)
    batch = sharding.put_batch(draw_batch(seed, rows, real, classes, sizes), mesh)
    after, metrics = jax.device_get(step.compile_train_step(config, mesh, placed)(placed, batch))
    return metrics, jax.tree.map(lambda a, b: (a - b) / RATE, params, after.params)


def assert_close(got, expected):
    """Every number to 1e-5 of the largest gradient, or of the parameters it was taken from."""
    for name, leaf in expected.items():
        largest = max(np.abs(x).max() for x in expected.values())
        np.testing.assert_allclose(got[name], leaf, rtol=0, atol=1e-5 * max(1, largest))


# A shape that fails says enough; a smaller one would take as long to compile again and again.
@settings(max_examples=2, phases=(Phase.explicit, Phase.generate))
@given(shape=shapes(), seed=st.integers(0, 10**6))
def test_any_number_of_devices_takes_the_same_step(tiny, shape, seed):
    wanted, gradients = take_step(tiny, 1, shape, seed)
    assert wanted["samples"][0] == shape[1]
    for count in COUNTS[1:]:
        metrics, got = take_step(tiny, count, shape, seed)
        assert metrics.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert_close(got, gradients)
