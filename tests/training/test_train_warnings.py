"""What a user should know of the data is said when training begins, not only by `prepare`."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig
from sft_jax.data.builders.arrays import Arrays
from sft_jax.data.sources import prepare
from sft_jax.training import loop, session
from sft_jax.types import ConfigError

OUTCOME = loop.Outcome(step=0, finished=True, best=None, best_step=0)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of no steps on a file with a one-hot table, a gap in its labels and a rare class."""
    monkeypatch.setattr(session, "_train_locked", lambda *_: OUTCOME)
    label = np.array([0] * 11 + [5])
    onehot = np.eye(6, dtype=int)[label]
    audio = np.random.default_rng(0).normal(size=(12, 2, 1))
    np.savez(tmp_path / "x.npz", audio=audio, label=label, onehot=onehot)
    data = DataConfig(
        source="arrays",
        options=ArraysOptions(path=str(tmp_path / "x.npz")),
        data_dir=str(tmp_path / "d"),
    )
    return Config(model=ModelConfig(embed_dim=8, num_heads=2), data=data)


def test_training_says_what_looks_wrong_with_the_data(config, tmp_path, capsys):
    session.train(config, tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [f"warning: {text}" for text in prepare(config.data).warnings]
    for part in ("entry onehot is left out", "classes are the 2 numbers that occur: 0, 5"):
        assert part in "".join(said)
    assert "split test has no sample of 1 class of 2" in said[-1]


def test_a_run_goes_on_with_the_data_an_earlier_version_prepared(config, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(Arrays, "VERSION", tfds.core.Version("1.1.0"))
        session.train(config, tmp_path / "run")
    prepared = tmp_path / "d" / "arrays"
    session.train(config, tmp_path / "run")
    assert [path.name for path in prepared.glob("*/1.*")] == ["1.1.0"]
    session.train(config, tmp_path / "other")
    assert len(list(prepared.glob("*/1.2.0"))) == 1


def test_a_modality_of_the_configuration_that_was_left_out_is_explained(config, tmp_path):
    spec = ModalitySpec(name="onehot", length=6, feature_dim=2, tokenizer="token", pool="none")
    with pytest.raises(ConfigError, match=r"the data has audio; .*name it in data\.options\.modal"):
        session.train(dataclasses.replace(config, modalities=(spec,)), tmp_path / "run")
