import importlib.util
import os
import pickle

import numpy as np
import pytest

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, ModelConfig, OptimizerConfig, TrainConfig
from sft_jax.efficiency.model_costs import random_batch
from sft_jax.interop.torch import torch_benchmark
from sft_jax.types import ConfigError


def config(**changes):
    spec = ModalitySpec(name="a", length=9, feature_dim=4, pool="max", window=3)
    model = {"num_classes": 3, "embed_dim": 8, "num_heads": 2, "num_post_layers": 1}
    return Config(
        modalities=(spec,),
        model=ModelConfig(**{**model, **changes}),
        train=TrainConfig(batch_size=4),
    )


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (
        lambda: torch_benchmark.torch_candidates(config(), random_batch(config())),
        lambda: torch_benchmark.run_once(config(), random_batch(config()), "torch eager"),
    ):
        with pytest.raises(ConfigError, match=r"not installed; .*pip install 'sft_jax\[torch\]'"):
            call()


@pytest.fixture
def torch_sft():
    pytest.importorskip("torch", reason="the extra 'torch' is optional and not installed")
    from sft_jax.interop.torch import torch_sft

    return torch_sft


def test_candidates_are_pytorch_s_eager_and_compiled_on_our_parameters(torch_sft, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    compared = []
    real = torch_sft.logits
    monkeypatch.setattr(torch_sft, "logits", lambda *args: compared.append(args) or real(*args))
    batch = random_batch(config())
    found = torch_benchmark.torch_candidates(config(), batch)
    assert list(found) == ["torch eager", "torch compiled"]
    assert len(compared) == 1  # outputs are compared before anything is handed out
    train, infer, run_alone = found["torch eager"]
    assert pickle.loads(pickle.dumps(run_alone)).args[2] == "torch eager"
    np.testing.assert_allclose(infer().numpy(), real(*compared[0]), atol=1e-6, rtol=0)
    before = infer().numpy()
    train()
    assert np.abs(infer().numpy() - before).max() > 1e-5
    # PyTorch's threads sleep while the others have their turn.
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize("change", [lambda x: x + 3e-4, lambda x: x * np.nan])
def test_a_planted_difference_is_refused(torch_sft, monkeypatch, change):
    real = torch_sft.logits
    monkeypatch.setattr(torch_sft, "logits", lambda *args: change(real(*args)))
    with pytest.raises(ConfigError, match=r"differ from ours by (0\.0003|nan), expected at most"):
        torch_benchmark.torch_candidates(config(), random_batch(config()))


def test_what_pytorch_does_not_offer_is_refused_before_anything_is_run(torch_sft, monkeypatch):
    monkeypatch.setattr(torch_sft, "logits", None)
    for refused, words in (
        (config(name="late"), r"model\.name: given 'late'"),
        (config(attention="fixed"), r"model\.attention: given 'fixed'"),
        (
            Config(
                modalities=config().modalities,
                model=config().model,
                optimizer=OptimizerConfig(schedule="cosine"),
            ),
            r"optimizer\.schedule: given 'cosine'",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            torch_benchmark.torch_candidates(refused, random_batch(config()))


def test_a_candidate_runs_alone(torch_sft, monkeypatch):
    ran = []
    functions = (lambda: ran.append("train"), lambda: ran.append("infer"))
    monkeypatch.setattr(torch_sft, "candidates", lambda *args: {"torch eager": functions})
    torch_benchmark.run_once(config(), random_batch(config()), "torch eager")
    assert ran == ["train", "infer"]
