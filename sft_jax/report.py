"""Writes a report: `python -m sft_jax.report --workdir=runs/x`.

The folder is that of a run, of several (`--workdir=runs/x,runs/y`) or of a sweep. One page that
needs nothing else, `report.html`, and its Markdown twin, `report.md`, are left there.
"""

from pathlib import Path

from sft_jax import cli
from sft_jax.efficiency.layer_costs import NOTE, beside_dense
from sft_jax.reports import report_writer

_WORKDIRS = cli.define_paths(
    "workdir", "A run, several with commas between, or a sweep.", required=True
)
_OUTPUT = cli.define_output(
    "output",
    "Folder to write to; that of the run or sweep, or what holds several runs.",
    folder=True,
)


def main():
    """Writes the report and prints its tables of metrics."""
    workdirs = list(map(_folder, _WORKDIRS.value))
    document = report_writer.read_document(workdirs, beside_dense, NOTE)
    folder = _OUTPUT.value or report_writer.default_folder(workdirs)
    path = report_writer.write_report(document, folder)
    print(f"{report_writer.results_text(document)}\n\nreport: {path}")


def _folder(folder: Path) -> Path:
    """The report names its folders as a command given from here would."""
    here = Path.cwd()
    return folder.relative_to(here) if here in folder.parents else folder


if __name__ == "__main__":
    cli.run(main)
