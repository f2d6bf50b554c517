"""The PyTorch model, checked against the JAX model, as functions that a benchmark can time."""

import functools
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

# Largest difference in logits that can be due to float32 rounding.
TOLERANCE = 1e-4
Function = Callable[[], Any]


def torch_candidates(
    config: Config, batch: Batch
) -> dict[str, tuple[Function, Function, Function]]:
    """The PyTorch model, eager and compiled, with the parameters of the JAX model.

    Args:
        config: Configuration of a model that `torch_sft` implements.
        batch: Batch of NumPy arrays.

    Returns:
        For each candidate a function that takes one optimizer step, one that evaluates the batch,
        and a picklable one that does both in a new process.

    Raises:
        ConfigError: PyTorch is not installed, `torch_sft` does not implement the model, or logits
            differ.
    """
    torch_sft = _import_torch_sft()
    torch_sft.check_training(config)
    model, params = registry.build(config), _initial_params(config)
    expected = jax.jit(model.apply)({"params": params}, batch["inputs"], batch["mask"]).logits
    logits = torch_sft.logits(config, params, batch)
    difference = float(np.abs(logits - np.asarray(expected)).max())
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"against: PyTorch's logits differ from ours by {difference:.2g}, expected at most "
            f"{TOLERANCE:g}; do not compare the two, since they compute different things"
        )
    return {
        name: (*functions, functools.partial(run_once, config, batch, name))
        for name, functions in torch_sft.candidates(config, params, batch).items()
    }


def run_once(config: Config, batch: Batch, name: str):
    """Runs one step and one evaluation of a PyTorch candidate; compiles nothing with JAX.

    Args:
        config: Configuration of a model that `torch_sft` implements.
        batch: Batch of NumPy arrays.
        name: Name of the candidate.

    Raises:
        ConfigError: PyTorch is not installed, or `torch_sft` does not implement the model.
    """
    train, infer = _import_torch_sft().candidates(config, _initial_params(config), batch)[name]
    train()
    infer()


def _import_torch_sft() -> ModuleType:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "against: given 'torch', which is not installed; install the extra: "
            "pip install 'sft_jax[torch]'"
        )
    # Keep PyTorch's threads from spinning while JAX runs. It is read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from sft_jax.interop.torch import torch_sft

    return torch_sft


def _initial_params(config: Config) -> Any:
    inputs = example_inputs(config.modalities)
    return registry.build(config).init(jax.random.key(0), *inputs)["params"]
