"""States how far seeds are apart: `python -m sft_jax.spread --workdirs=runs/a-0,runs/a-1,runs/b-0`.

One row for each setting, that is, for what the names of run folders have in front of the seed.
"""

from absl import flags

from sft_jax import cli
from sft_jax.reports.seed_spread import spread_rows
from sft_jax.reports.text_tables import format_table
from sft_jax.runs.run_files import read_config
from sft_jax.tasks import from_config

_WORKDIRS = cli.define_paths("workdirs", "Evaluated runs, named <setting>-<seed>.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split that was evaluated.")
_METRIC = flags.DEFINE_string(
    "metric", None, "Metric to compare; the main metric of the runs' task if not given."
)


def main():
    """Prints the table."""
    workdirs = _WORKDIRS.value
    metric = _METRIC.value or from_config(read_config(workdirs[0])).main_metric
    print(format_table(spread_rows(workdirs, _SPLIT.value, metric)))


if __name__ == "__main__":
    cli.run(main)
