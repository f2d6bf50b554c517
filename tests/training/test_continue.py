"""A run that is continued to a longer duration is the run that was longer from the start."""

import jax
import numpy as np
import pytest

from sft_jax import api
from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.io import override
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config
from sft_jax.runs.run_files import check_duration, read_config
from sft_jax.types import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("one_device")

SPECS = (ModalitySpec(name="m0", length=4, feature_dim=3, pool="none"),)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings with ten steps an epoch, of the model that compiles fastest."""
    data = DataConfig(
        source="synthetic",
        options=SyntheticOptions(
            lengths=(4,), feature_dims=(3,), num_train=40, num_valid=6, num_test=4
        ),
        data_dir=str(tmp_path_factory.mktemp("data")),
    )
    changes = {
        "model.name": "unimodal",
        "model.options.modality": "m0",
        "model.options.window": 4,
        "model.embed_dim": 8,
        "model.num_heads": 2,
        "model.num_pre_layers": 0,
        "model.num_post_layers": 0,
        "optimizer.learning_rate": 0.1,  # so high that the plateau rule applies
        "optimizer.plateau_patience": 0,
        "optimizer.plateau_factor": 0.5,
        "train.batch_size": 4,
        "train.eval_every": "3 steps",
        "train.checkpoint_every": "6 steps",
        "train.log_every": 2,
    }
    return override(Config(modalities=SPECS, data=data), changes)


def lasting(config, duration, schedule="constant"):
    return override(config, {"train.duration": duration, "optimizer.schedule": schedule})


@pytest.mark.parametrize(
    ("schedule", "first"),
    [("constant", "1.2 epochs"), ("plateau", "12 steps"), ("plateau", "11 steps")],
)
def test_a_continued_run_is_the_longer_one(config, schedule, first, tmp_path, read_run):
    longer = lasting(config, "24 steps", schedule)
    straight = api.train(longer, tmp_path / "straight")
    api.train(lasting(config, first, schedule), tmp_path / "run")
    outcome = api.train(longer, tmp_path / "run")
    assert outcome.step == 24
    assert read_config(tmp_path / "run") == read_config(tmp_path / "straight")
    expected, got = read_run(tmp_path / "straight"), read_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, got.last, expected.last)
    if schedule == "plateau":
        assert expected.last.lr_scale < 1
    if first != "11 steps":  # at which no validation is due
        assert outcome == straight
        assert got.records == expected.records
        jax.tree.map(np.testing.assert_array_equal, got.best, expected.best)


def test_a_cosine_is_stretched_only_on_request(config, tmp_path):
    api.train(lasting(config, "3 steps", "cosine"), tmp_path)
    before = (tmp_path / "config.json").read_text()
    longer = lasting(config, "6 steps", "cosine")
    with pytest.raises(
        CheckpointError, match=r"'6 steps' .*a run of 3 steps .*stretched.*--extend"
    ):
        api.train(longer, tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert api.train(longer, tmp_path, extend=True).step == 6
    assert read_config(tmp_path).train.duration == longer.train.duration
    with pytest.raises(CheckpointError, match=r"'5 steps' .*has taken 6 steps, .*give '6 steps'"):
        api.train(lasting(config, "5 steps", "cosine"), tmp_path, extend=True)


def test_a_run_that_stopped_early_keeps_its_duration(config, tmp_path):
    """It takes no further step, so nothing is changed."""
    still = override(
        lasting(config, "12 steps"), {"train.patience": 1, "optimizer.learning_rate": 0.0}
    )
    assert api.train(still, tmp_path).step == 6
    before = (tmp_path / "config.json").read_text()
    outcome = api.train(override(still, {"train.duration": "24 steps"}), tmp_path)
    assert (outcome.step, outcome.stopped_early) == (6, True)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("schedule", "duration", "trained", "extend", "refused"),
    [
        ("cosine", "10 epochs", 50, False, False),
        ("cosine", "100 steps", 50, False, False),  # the same length
        ("cosine", "20 epochs", 0, False, False),  # nothing was trained
        ("cosine", "20 epochs", 50, False, True),
        ("cosine", "6 epochs", 50, False, True),
        ("cosine", "6 epochs", 50, True, False),
        ("plateau", "6 epochs", 50, False, False),
        ("constant", "5 epochs", 50, False, False),
        ("constant", "49 steps", 50, True, True),
    ],
)
def test_which_durations_are_refused(schedule, duration, trained, extend, refused, tmp_path):
    stored = lasting(Config(), "10 epochs", schedule)
    arguments = (tmp_path, stored, lasting(stored, duration, schedule), 10, trained, extend)
    if refused:
        with pytest.raises(CheckpointError, match=r"given train\.duration"):
            check_duration(*arguments)
    else:
        check_duration(*arguments)


def test_a_continued_run_leaves_its_frozen_parameters_alone(config, tmp_path, read_run):
    settings = {"train.freeze": ("head/*",), "optimizer.weight_decay": 0.1, "train.accumulate": 2}
    frozen = override(config, settings)
    api.train(lasting(frozen, "3 steps"), tmp_path)
    before = read_run(tmp_path).last.params
    api.train(lasting(frozen, "6 steps"), tmp_path)
    after = read_run(tmp_path).last.params
    jax.tree.map(np.testing.assert_array_equal, after["head"], before["head"])
    same = jax.tree.map(np.array_equal, after, before)
    assert not all(jax.tree.leaves(same))


def test_a_pattern_that_matches_nothing_ends_training_before_it_begins(config, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.freeze: given 'nothing', .* begin with one of"):
        api.train(override(config, {"train.freeze": ("nothing",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
