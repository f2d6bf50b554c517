"""What a user should know of the data is said when training begins, not only by `prepare`."""

import numpy as np

from sft_jax.config import Config, ModelConfig
from sft_jax.data.sources import prepare
from sft_jax.data_config import ArraysOptions, DataConfig
from sft_jax.training import loop, session

OUTCOME = loop.Outcome(step=0, finished=True, best=None, best_step=0)


def test_training_says_what_looks_wrong_with_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "_train_there", lambda *_: OUTCOME)
    label = np.array([0] * 11 + [5])
    onehot = np.eye(6, dtype=int)[label]
    audio = np.random.default_rng(0).normal(size=(12, 2, 1))
    np.savez(tmp_path / "x.npz", audio=audio, label=label, onehot=onehot)
    data = DataConfig(
        source="arrays",
        options=ArraysOptions(path=str(tmp_path / "x.npz")),
        data_dir=str(tmp_path / "d"),
    )
    session.train(Config(model=ModelConfig(embed_dim=8, num_heads=2), data=data), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [f"warning: {text}" for text in prepare(data).warnings]
    for part in ("entry onehot is left out", "classes are the 2 numbers that occur: 0, 5"):
        assert part in "".join(said)
    assert "split test has no sample of 1 class of 2" in said[-1]
