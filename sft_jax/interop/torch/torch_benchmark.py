"""Another library's model, checked against ours, as callables that a benchmark can time."""

import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from sft_jax.config.run import Config
from sft_jax.models import registry
from sft_jax.training.state import example_inputs
from sft_jax.types import Batch, ConfigError

# The largest difference in logits that two libraries' float32 sums may show.
TOLERANCE = 1e-4


def torch_candidates(
    config: Config, batch: Batch
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """PyTorch's SFT, eager and compiled, on our parameters and a batch.

    Args:
        config: of a model that `torch_sft` offers.
        batch: numpy arrays.

    Returns:
        By name: one optimizer step, and one evaluation.

    Raises:
        ConfigError: PyTorch is not installed, offers no such model, or computes something else.
    """
    torch_sft = _import_torch_sft()
    torch_sft.check_training(config)
    model = registry.build(config)
    params = _parameters(config)
    ours = jax.jit(model.apply)({"params": params}, batch["inputs"], batch["mask"]).logits
    theirs = torch_sft.logits(config, params, batch)
    difference = float(np.abs(theirs - np.asarray(ours)).max())
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"against: PyTorch's logits differ from ours by {difference:.2g}, expected at most "
            f"{TOLERANCE:g}; what is timed would not be the same computation"
        )
    found = torch_sft.candidates(config, params, batch)
    return {name: (entry.train, entry.infer) for name, entry in found.items()}


def run_once(config: Config, batch: Batch, name: str):
    """One step and one evaluation of a PyTorch candidate, with nothing of ours compiled.

    Args:
        config: as `torch_candidates`.
        batch: as `torch_candidates`.
        name: of the candidate.

    Raises:
        ConfigError: PyTorch is not installed, or offers no such model.
    """
    entry = _import_torch_sft().candidates(config, _parameters(config), batch)[name]
    entry.train()
    entry.infer()


def _import_torch_sft() -> ModuleType:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "against: given 'torch', which is not installed; install the extra: "
            "pip install 'sft_jax[torch]'"
        )
    # Its threads would otherwise spin for work in ours' turns; read when PyTorch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from sft_jax.interop.torch import torch_sft

    return torch_sft


def _parameters(config: Config) -> Any:
    inputs = example_inputs(config.modalities)
    return registry.build(config).init(jax.random.key(0), *inputs)["params"]
