"""States how far seeds are apart: `python -m sft_jax.spread --workdirs=runs/a-0,runs/a-1,runs/b-0`.

One row for each setting, that is, for what the names of run folders have in front of the seed.
"""

from pathlib import Path

from absl import flags

from sft_jax import cli
from sft_jax.reports.seed_spread import spread_rows
from sft_jax.reports.text_tables import format_table

_WORKDIRS = flags.DEFINE_list(
    "workdirs", None, "Evaluated runs, named <setting>-<seed>.", required=True
)
_SPLIT = flags.DEFINE_string("split", "test", "Split that was evaluated.")
_METRIC = flags.DEFINE_string("metric", "top1", "Metric to compare.")


def main():
    """Prints the table."""
    workdirs = [Path(name).expanduser() for name in _WORKDIRS.value]
    print(format_table(spread_rows(workdirs, _SPLIT.value, _METRIC.value)))


if __name__ == "__main__":
    cli.run(main)
