"""Writes a report: one HTML page, and a Markdown version with its figures beside it."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.config.run import Config
from sft_jax.reports import html_page, markdown
from sft_jax.reports.document import Document
from sft_jax.reports.figures.style import save
from sft_jax.reports.sections.run_report import run_document, runs_document
from sft_jax.reports.sections.study_report import study_document
from sft_jax.reports.text_tables import format_table
from sft_jax.runs.run_folder import Run, is_run, read_run
from sft_jax.runs.study_folder import is_study, read_study_folder
from sft_jax.tasks import Task, from_run, from_study
from sft_jax.tasks.blocks import TableBlock
from sft_jax.types import CheckpointError, DataError

# Maps a configuration to rows `{model, parameters, forward GFLOP, ...}`, its own model first.
Cost = Callable[[Config], Sequence[Mapping[str, Any]]]


def read_document(
    workdirs: Sequence[Path], cost: Cost | None = None, cost_note: str = ""
) -> Document:
    """The report of a run, of several runs, or of a study.

    Args:
        workdirs: Folders of one or several runs, or that of one study.
        cost: States what a run's model costs; a study stores its own costs.
        cost_note: Explanation of the rows of `cost`.

    Raises:
        CheckpointError: A folder holds neither, there are several studies, or a file is missing or
            damaged; the message names the command that writes it.
        DataError: The files contradict each other.
    """
    for folder in workdirs:
        if not is_run(folder) and not is_study(folder):
            raise CheckpointError(
                f"{folder}: found neither config.json of a run nor study.json of a sweep, expected "
                "the folder of one of them; make a run with `python -m sft_jax.train "
                f"--config=configs/<run>.py --workdir={folder}`"
            )
    studies = [folder for folder in workdirs if is_study(folder)]
    if studies and len(workdirs) > 1:
        raise CheckpointError(
            f"{studies[0]}: given with {len(workdirs) - 1} other folders, expected a study alone; "
            "report on it by itself"
        )
    if studies:
        study = read_study_folder(studies[0])
        return study_document(study, from_study(study.record))
    runs = [read_run(folder) for folder in workdirs]
    task = from_run(runs[0].config, runs[0].data)
    for run in runs:
        _check_main_metric(run, task)
    costs = [cost(run.config) if cost else () for run in runs]
    if len(runs) == 1:
        return run_document(runs[0], task, costs[0], cost_note)
    return runs_document(runs, task, costs, cost_note)


def _check_main_metric(run: Run, task: Task):
    """Raises `DataError` unless every evaluation has a value of the task's main metric."""
    for evaluation in run.evaluations:
        scores = {"metrics": evaluation["metrics"], "group": evaluation.get("group")}
        for part, metrics in scores.items():
            found = None if metrics is None else metrics.get(task.main_metric)
            if metrics is not None and (found is None or found["value"] is None):
                raise DataError(
                    f"{run.workdir}/evaluation_{evaluation['split']}.json: "
                    f"{part}.{task.main_metric}.value: found None, expected a number; write it "
                    "again with `python -m sft_jax.evaluate`"
                )


def default_folder(workdirs: Sequence[Path]) -> Path:
    """Folder for a report: the one that it is about, or the parent of several."""
    if len(workdirs) == 1:
        return workdirs[0]
    return Path(os.path.commonpath([folder.parent for folder in workdirs]))


def write_report(document: Document, folder: Path) -> Path:
    """Writes `report.html`, `report.md` and the figures of both, `<figure>.png`.

    Returns:
        Path of the HTML page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for picture in document.pictures():
        save(picture.figure, folder / f"{picture.name}.png")
    (folder / "report.md").write_text(markdown.render(document))
    path = folder / "report.html"
    path.write_text(html_page.render(document))
    return path


def results_text(document: Document) -> str:
    """The first table of every section whose title starts with "Results", for a terminal."""
    parts = []
    for section in document.sections:
        if section.title.startswith("Results"):
            tables = [block for block in section.blocks if isinstance(block, TableBlock)]
            parts += [f"{section.title}\n{format_table(table.rows)}" for table in tables[:1]]
    return "\n\n".join(parts)
