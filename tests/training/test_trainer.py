import jax
import numpy as np
import pytest

from sft_jax.config.run import MixupConfig
from sft_jax.tasks import from_config
from sft_jax.training.sharding import make_mesh
from sft_jax.training.trainer import Trainer, count_parameters, resolve
from sft_jax.types import ConfigError


def test_durations_and_mixup_are_counted_in_steps(tiny, devices):
    config = tiny.config(mixup=MixupConfig(mode="any", groups=4), batch_size=16)
    mesh = make_mesh(config.train, devices[:2])
    trainer = Trainer.of(config, from_config(config), 7, mesh)
    assert trainer.schedule.total == 20 * 7
    assert trainer.step.mixup.group_size == 4
    with pytest.raises(ConfigError, match=r"mixup\.groups"):
        Trainer.of(config, from_config(config), 7, make_mesh(config.train, devices[:8]))


def test_the_first_state_depends_on_the_seed_alone(tiny, devices):
    config = tiny.config()
    task = from_config(config)
    one = Trainer.of(config, task, 3, make_mesh(config.train, devices[:1]))
    state, abstract = one.create_state()
    got, same = jax.device_get(state.params), jax.jit(lambda seed: one.init(seed).params)
    jax.tree.map(np.testing.assert_allclose, jax.device_get(same(config.train.seed)), got)
    other = jax.device_get(same(config.train.seed + 1))
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), other, got)
    assert max(jax.tree.leaves(changes)) > 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert count_parameters(got)["total"] == sum(x.size for x in jax.tree.leaves(got))


def test_the_configured_number_of_outputs_must_be_the_tasks(tiny):
    config = tiny.config()
    assert resolve(config, config.modalities, 3).model.num_classes == 3
    with pytest.raises(ConfigError, match=r"num_classes: given 3, expected 5"):
        resolve(config, config.modalities, 5)
