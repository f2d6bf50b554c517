"""What a configured model costs: parameters, operations, memory, and samples a second."""

import dataclasses
from typing import Any

import jax
import numpy as np

from sft_jax.config import Config
from sft_jax.efficiency.cost import matmul_flops
from sft_jax.efficiency.throughput import time_interleaved
from sft_jax.models import registry
from sft_jax.training.mixing import MixupPlan
from sft_jax.training.optimizer import build_optimizer, learning_rate
from sft_jax.training.run import count_parameters, step_config
from sft_jax.training.sharding import make_mesh, put_batch
from sft_jax.training.state import create_state, example_inputs, state_initializer
from sft_jax.training.step import compile_eval_step, compile_train_step
from sft_jax.types import Batch, ConfigError


def check_complete(config: Config):
    """Raises `ConfigError` where the data would have to fill something in."""
    if not config.modalities or not config.model.num_classes:
        raise ConfigError(
            f"config: given {len(config.modalities)} modalities and num_classes "
            f"{config.model.num_classes}, expected both set, since no data is read here; set them"
        )


def num_parameters(config: Config) -> int:
    """Trained numbers of the model, without drawing them."""
    check_complete(config)
    model = registry.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(config.modalities))
    return count_parameters(shapes["params"])["total"]


def forward_gflop(config: Config) -> float:
    """Billions of operations in the products of one sample's forward pass (see `matmul_flops`).

    Dense attention counts as its two products, whatever implementation would run.
    """
    check_complete(config)
    plain = dataclasses.replace(config.model, implementation="xla")
    model = registry.build(dataclasses.replace(config, model=plain))
    args = example_inputs(config.modalities)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return matmul_flops(lambda variables: model.apply(variables, *args).logits, shapes) / 1e9


def random_batch(config: Config, seed: int = 0) -> Batch:
    """A batch of the configured size and shapes, everything real."""
    rng, rows = np.random.default_rng(seed), config.train.batch_size
    inputs = {}
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
        label=rng.integers(0, config.model.num_classes, rows).astype(np.int32),
        weight=np.ones(rows, np.float32),
        id=np.arange(rows, dtype=np.int32),
    )


class _Compiled:
    """Training and evaluation step of a configuration, compiled, with a state to run them on."""

    def __init__(self, config: Config):
        check_complete(config)
        model, mesh = registry.build(config), make_mesh(config.train)
        rate = learning_rate(config.optimizer, 1000, 0)
        optimizer = build_optimizer(config.optimizer, rate)
        self.state, abstract = create_state(state_initializer(model, optimizer, 0), mesh)
        step = step_config(config, model, optimizer, rate, MixupPlan.of(config, 1000, mesh.size))
        self.batch = put_batch(random_batch(config), mesh)
        train = compile_train_step(step, mesh, abstract)
        self.train_step = train.lower(self.state, self.batch).compile()
        evaluate = compile_eval_step(step.apply, mesh)
        self.eval_step = evaluate.lower(self.state.params, self.batch).compile()

    def train(self) -> Any:
        # The state is donated, so the next call takes what this one hands back.
        self.state, metrics = self.train_step(self.state, self.batch)
        return metrics

    def evaluate(self) -> Any:
        return self.eval_step(self.state.params, self.batch)


def compare(configs: dict[str, Config], repeats: int) -> list[dict[str, Any]]:
    """Rows of a table, one a configuration, timed in turn on random batches of its shapes.

    Args:
        configs: by the name that a row gets.
        repeats: timed rounds.

    Raises:
        ConfigError: a configuration that leaves modalities or classes to the data.
    """
    compiled = {name: _Compiled(config) for name, config in configs.items()}
    calls = {(name, "train"): entry.train for name, entry in compiled.items()}
    calls |= {(name, "evaluate"): entry.evaluate for name, entry in compiled.items()}
    timings = time_interleaved(calls, repeats)
    rows = []
    for name, config in configs.items():
        batch = config.train.batch_size
        memory = compiled[name].train_step.memory_analysis().temp_size_in_bytes
        rows.append(
            {
                "configuration": name,
                "parameters": num_parameters(config),
                "forward GFLOP": round(forward_gflop(config), 3),
                "train samples/s": round(batch / timings[name, "train"].median, 1),
                "inference samples/s": round(batch / timings[name, "evaluate"].median, 1),
                "temporary MB": round(memory / 1e6, 1),
            }
        )
    return rows
