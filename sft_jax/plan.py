"""Plans training for devices that are not there: `python -m sft_jax.plan --config=... --topology=`.

The training step is compiled by the real compiler of a TPU slice or a GPU node, and read. With
several topologies, one table of all of them is printed. docs/plan.md explains the columns.
"""

import dataclasses

from absl import flags

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.efficiency import plan_tables
from sft_jax.efficiency.plan import plan_model
from sft_jax.efficiency.topology import EXAMPLES, parse
from sft_jax.efficiency.variants import VARIANTS, variant
from sft_jax.reports.text_tables import format_table

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_list(
    "topology", None, f"What to plan for, such as {EXAMPLES}.", required=True
)
_COMPARE = flags.DEFINE_list("compare", ["sft"], f"Models to plan, of {', '.join(VARIANTS)}.")
_BATCH = flags.DEFINE_integer("global_batch", 0, "Samples of a step over all chips.", lower_bound=0)
_DTYPE = flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "Of the computation.")
_LARGEST = flags.DEFINE_bool("largest", True, "Search the largest batch that fits, too.")
_JSON = cli.define_output("json", "File for the numbers.")


def main():
    """Prints the tables; writes the numbers where asked to."""
    config = from_dict(_CONFIG.value)
    dtype = _DTYPE.value or config.model.dtype
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    configs = {name: variant(config, name) for name in _COMPARE.value}
    plans = {
        topology: {
            name: plan_model(entry_config, topology, _BATCH.value, _LARGEST.value)
            for name, entry_config in configs.items()
        }
        for topology in map(parse, _TOPOLOGY.value)
    }
    if len(plans) == 1:
        (models,) = plans.values()
        tables = [
            plan_tables.memory_rows(models),
            plan_tables.work_rows(models),
            plan_tables.collective_rows(models),
        ]
        print(plan_tables.heading(next(iter(models.values()))), end="\n\n")
    else:
        tables = [plan_tables.overview_rows(plans)]
    print("\n\n".join(map(format_table, filter(None, tables))))
    cli.write_json(_JSON, plan_tables.to_json(plans))


if __name__ == "__main__":
    cli.run(main)
