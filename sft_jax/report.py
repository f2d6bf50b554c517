"""Writes a report: `python -m sft_jax.report --workdir=runs/x`.

The folder is that of a run, of several (`--workdir=runs/x,runs/y`) or of a sweep. One page that
needs nothing else, `report.html`, and its Markdown twin, `report.md`, are left there.
"""

from pathlib import Path

from absl import flags

from sft_jax import cli
from sft_jax.efficiency.layer_costs import NOTE, beside_dense
from sft_jax.reports import report_writer

_WORKDIRS = flags.DEFINE_list(
    "workdir", None, "A run, several with commas between, or a sweep.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write to; that of the run or sweep, or what holds several runs."
)


def main():
    """Writes the report and prints its tables of metrics."""
    workdirs = list(map(_folder, _WORKDIRS.value))
    document = report_writer.read_document(workdirs, report_writer.CostModel(beside_dense, NOTE))
    folder = cli.path(_OUTPUT) if _OUTPUT.value else report_writer.default_folder(workdirs)
    path = report_writer.write(document, folder)
    print(f"{report_writer.results_text(document)}\n\nreport: {path}")


def _folder(name: str) -> Path:
    """The report names its folders as a command given from here would."""
    folder, here = Path(name).expanduser().absolute(), Path.cwd()
    return folder.relative_to(here) if here in folder.parents else folder


if __name__ == "__main__":
    cli.run(main)
