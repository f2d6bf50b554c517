"""States what models cost, without running them: `python -m sft_jax.cost --config=...`.

One table of the models in `--compare`, then the layers of the first of them.
"""

import json
from pathlib import Path

from absl import flags

from sft_jax import cli
from sft_jax.analysis.report import format_table
from sft_jax.config_io import from_dict
from sft_jax.efficiency.cost import CONVENTION
from sft_jax.efficiency.layers import LayerCost, layer_costs
from sft_jax.efficiency.models import num_parameters
from sft_jax.efficiency.variants import VARIANTS, variant

_CONFIG = cli.define_config()
_COMPARE = flags.DEFINE_list(
    "compare", list(VARIANTS), f"Models at the configuration's widths, of {', '.join(VARIANTS)}."
)
_JSON = flags.DEFINE_string("json", "", "File for the numbers.")
_NOTE = f"""
One sample. {CONVENTION};
train is forward and backward pass. Maps: attention maps of all heads in float32, were they written
out. Saved: what the forward pass keeps for the backward pass, parameters aside."""


def main():
    """Prints both tables; writes the numbers where asked to."""
    config = from_dict(_CONFIG.value)
    variants = {name: variant(config, name) for name in _COMPARE.value}
    layers = {name: layer_costs(own) for name, own in variants.items()}
    rows = [
        {"model": name, "parameters": num_parameters(own), **_costs(layers[name])}
        for name, own in variants.items()
    ]
    first = next(iter(layers))
    print(f"{format_table(rows)}\n\nLayers of {first}:\n")
    print(f"{format_table(list(map(_row, layers[first])))}\n{_NOTE}")
    if _JSON.value:
        found = {
            row["model"]: {**row, "layers": [vars(layer) for layer in layers[row["model"]]]}
            for row in rows
        }
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


def _row(layer: LayerCost) -> dict[str, str | float | int | None]:
    return {
        "layer": layer.layer,
        "layers": layer.count,
        "tokens": layer.tokens or None,
        **_costs([layer]),
    }


def _costs(layers: list[LayerCost]) -> dict[str, float]:
    return {
        "forward GFLOP": round(sum(layer.forward_flops for layer in layers) / 1e9, 4),
        "train GFLOP": round(sum(layer.train_flops for layer in layers) / 1e9, 4),
        "maps MB": round(sum(layer.attention_bytes for layer in layers) / 1e6, 2),
        "saved MB": round(sum(layer.saved_bytes for layer in layers) / 1e6, 2),
    }


if __name__ == "__main__":
    cli.run(main)
