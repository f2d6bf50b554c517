"""Writes the report of a run: `python -m sft_jax.report --workdir=runs/x`.

Reads the run folder, prints the metrics of every evaluated split, and leaves `report.md` and its
figures there. An `example.npz` in the folder adds the figure of kept tokens.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from sft_jax.analysis import report

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder to report on.", required=True)


def main(argv: Sequence[str]):
    """Writes the report and prints its tables of metrics."""
    if len(argv) > 1:
        raise app.UsageError(f"given {argv[1:]}, expected flags only, e.g. --workdir=runs/x")
    workdir = Path(WORKDIR.value).expanduser()
    recording = workdir / "example.npz"
    example = report.load_example(recording) if recording.is_file() else None
    path = report.write_report(workdir, example=example)
    for evaluation in report.read_evaluations(workdir):
        print(f"{evaluation['split']}, step {evaluation['step']}")
        print(report.format_table(report.metric_rows(evaluation)), end="\n\n")
    print(f"report: {path}")


if __name__ == "__main__":
    app.run(main)
