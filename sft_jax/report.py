"""Writes the report of a run: `python -m sft_jax.report --workdir=runs/x`.

Reads the run folder, prints the metrics of every evaluated split, and leaves `report.md` and its
figures there. An `example.npz` in the folder adds the figure of kept tokens.
"""

from sft_jax import cli
from sft_jax.analysis import report

_WORKDIR = cli.define_workdir("Run folder to report on.")


def main():
    """Writes the report and prints its tables of metrics."""
    workdir = cli.path(_WORKDIR)
    recording = workdir / "example.npz"
    example = report.load_example(recording) if recording.is_file() else None
    path = report.write_report(workdir, example=example)
    for evaluation in report.read_evaluations(workdir):
        print(f"{evaluation['split']}, step {evaluation['step']}")
        print(report.format_table(report.metric_rows(evaluation)), end="\n\n")
    print(f"report: {path}")


if __name__ == "__main__":
    cli.run(main)
