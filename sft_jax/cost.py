"""States what models cost, without running them: `python -m sft_jax.cost --config=...`.

One table of the models in `--compare`, then the layers of the first of them.
"""

from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.efficiency.layer_costs import NOTE, layer_costs, layer_row, model_row
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.reports.text_tables import format_table

_CONFIG = cli.define_config()
_COMPARE = flags.DEFINE_list(
    "compare", list(VARIANTS), f"Models at the configuration's widths, of {', '.join(VARIANTS)}."
)
_JSON = cli.define_output("json", "File for the numbers.")


def main():
    """Prints both tables; writes the numbers where asked to."""
    config = from_dict(_CONFIG.value)
    variants = {name: variant(config, name) for name in _COMPARE.value}
    layers = {name: layer_costs(own) for name, own in variants.items()}
    rows = [model_row(name, own, layers[name]) for name, own in variants.items()]
    first = next(iter(layers))
    print(f"{format_table(rows)}\n\nLayers of {first}:\n")
    print(f"{format_table(list(map(layer_row, layers[first])))}\n\n{NOTE}")
    found = {
        row["model"]: {**row, "layers": [vars(layer) for layer in layers[row["model"]]]}
        for row in rows
    }
    cli.write_json(_JSON, found)


if __name__ == "__main__":
    cli.run(main)
