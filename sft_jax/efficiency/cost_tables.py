"""Table rows with the cost of a model, in total and layer by layer."""

from collections.abc import Sequence
from typing import Any

from sft_jax.config.run import Config
from sft_jax.efficiency.flops import CONVENTION
from sft_jax.efficiency.layer_costs import LayerCost, layer_costs
from sft_jax.efficiency.model_costs import num_parameters
from sft_jax.efficiency.variants import variant

NOTE = f"""One sample. {CONVENTION};
train is forward and backward pass. Maps: attention maps of all heads in float32, were they written
out. Saved: what the forward pass keeps for the backward pass, parameters aside."""


def model_row(name: str, config: Config, layers: Sequence[LayerCost]) -> dict[str, Any]:
    """A row for a model with these layers."""
    return {"model": name, "parameters": num_parameters(config), **_costs(layers)}


def layer_row(layer: LayerCost) -> dict[str, Any]:
    """A row for one layer, or for a stack of equal layers."""
    return {
        "layer": layer.layer,
        "layers": layer.count,
        "tokens": layer.tokens or None,
        **_costs([layer]),
    }


def beside_dense(config: Config) -> list[dict[str, Any]]:
    """Rows of a configured model and, if it pools, of the same model with every token kept."""
    configs = {config.model.name: config}
    if config.model.name == "sft" and any(spec.pool != "none" for spec in config.modalities):
        configs["dense"] = variant(config, "dense")
    return [model_row(name, own, layer_costs(own)) for name, own in configs.items()]


def _costs(layers: Sequence[LayerCost]) -> dict[str, float]:
    return {
        "forward GFLOP": round(sum(layer.forward_flops for layer in layers) / 1e9, 4),
        "train GFLOP": round(sum(layer.train_flops for layer in layers) / 1e9, 4),
        "maps MB": round(sum(layer.attention_bytes for layer in layers) / 1e6, 2),
        "saved MB": round(sum(layer.saved_bytes for layer in layers) / 1e6, 2),
    }
