"""Cost of a configured model without running it, and a random batch to run it on."""

import dataclasses
from typing import Any

import jax
import numpy as np

from sft_jax.config.run import Config
from sft_jax.efficiency.flops import matmul_flops
from sft_jax.models import registry
from sft_jax.tasks import from_config
from sft_jax.training.state import example_inputs
from sft_jax.training.trainer import count_parameters
from sft_jax.types import Batch, ConfigError


def check_complete(config: Config):
    """Raises `ConfigError` if modalities or outputs are left to the data."""
    outputs = from_config(config).output_size
    if not config.modalities or not outputs:
        raise ConfigError(
            f"config: given {len(config.modalities)} modalities and {outputs} outputs, expected at "
            "least one of each, since no data is read here; set modalities and model.num_classes"
        )


def num_parameters(config: Config) -> int:
    """Number of trained parameters, without initialising them."""
    check_complete(config)
    model = registry.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config.modalities))
    return count_parameters(shapes["params"])["total"]


def forward_gflop(config: Config) -> float:
    """GFLOP of the products in one sample's forward pass (see `matmul_flops`).

    Dense attention counts as its two products, whatever implementation would run.
    """
    return matmul_flops(*output_sum(with_plain_attention(config))) / 1e9


def train_gflop(config: Config) -> float:
    """Like `forward_gflop`, of forward and backward pass; recomputation is not counted."""
    function, shapes = output_sum(with_plain_attention(config))
    return matmul_flops(jax.grad(function), shapes) / 1e9


def study_cost(config: Config) -> dict[str, str | int | float | None]:
    """Cost of a study's setting: model, parameters, GFLOP per sample, and tokens.

    `tokens_in` and `tokens_kept` are sums over modalities, without CLS, before and after the pools.
    `tokens_kept` is None for models that pool after fusion.
    """
    single = getattr(config.model.options, "modality", "")
    specs = [spec for spec in config.modalities if not single or spec.name == single]
    tokens = sum(spec.num_tokens for spec in specs)
    kept = None if config.model.name in ("concat", "unimodal") else tokens
    if config.model.name == "sft":
        kept = sum(spec.num_pooled for spec in specs)
    return {
        "model": config.model.name,
        "num_parameters": num_parameters(config),
        "forward_gflop": forward_gflop(config),
        "tokens_in": tokens,
        "tokens_kept": kept,
    }


def with_plain_attention(config: Config) -> Config:
    """Returns `config` with dense attention as two products and no recomputation."""
    model = dataclasses.replace(config.model, implementation="xla", remat="none")
    return dataclasses.replace(config, model=model)


def output_sum(config: Config):
    """Returns the sum of one sample's outputs as a function of the parameters, and their shapes."""
    check_complete(config)
    model, inputs = registry.build(config), example_inputs(config.modalities)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def function(variables):
        output: Any = model.apply(variables, *inputs)
        return output.logits.sum()

    return function, shapes


def random_batch(config: Config, seed: int = 0) -> Batch:
    """A random batch of the configured size and shapes, with nothing masked."""
    rng, rows = np.random.default_rng(seed), config.train.batch_size
    inputs: dict[str, np.ndarray] = {}
    for spec in config.modalities:
        if spec.tokenizer == "token":
            ids = rng.integers(0, spec.feature_dim, (rows, spec.length))
            inputs[spec.name] = ids.astype(np.int32)
        else:
            shape = (rows, spec.length, spec.feature_dim)
            inputs[spec.name] = rng.standard_normal(shape, np.float32)
    return Batch(
        inputs=inputs,
        mask={name: np.ones(x.shape[:2], bool) for name, x in inputs.items()},
        target=from_config(config).random_target(rng, rows),
        weight=np.ones(rows, np.float32),
        id=np.arange(rows, dtype=np.int32),
    )
