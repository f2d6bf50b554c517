"""Writes a report: one HTML page, and a Markdown twin with its figures beside it."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.config.run import Config
from sft_jax.reports import html_page, markdown
from sft_jax.reports.document import Document, Table
from sft_jax.reports.figures import plots
from sft_jax.reports.sections.one_run import run_document
from sft_jax.reports.sections.several_runs import runs_document
from sft_jax.reports.sections.study import study_document
from sft_jax.reports.tables import format_table
from sft_jax.runs.run_folder import is_run, read_run
from sft_jax.runs.study_folder import is_study, read_study_folder
from sft_jax.types import CheckpointError


@dataclasses.dataclass(frozen=True)
class CostModel:
    """How to say what a configured model costs.

    Attributes:
        rows: from a configuration to rows `{model, parameters, forward GFLOP, ...}`, its own first.
        note: what they mean.
    """

    rows: Callable[[Config], Sequence[Mapping[str, Any]]]
    note: str


def _unknown(config: Config) -> Sequence[Mapping[str, Any]]:
    return ()


NO_COST = CostModel(_unknown, "")


def read_document(workdirs: Sequence[Path], cost: CostModel = NO_COST) -> Document:
    """The report of a run, of several, or of a study.

    Args:
        workdirs: folders of one run or several (see `run_folder`), or that of a study alone (see
            `study_folder`).
        cost: of runs; a study states its own. Without it a report is silent.

    Raises:
        CheckpointError: a folder that holds neither, several studies, or a file that is missing;
            the message names the command that makes it.
        DataError: files that disagree.
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
        return study_document(read_study_folder(studies[0]))
    runs = [read_run(folder) for folder in workdirs]
    if len(runs) == 1:
        return run_document(runs[0], cost.rows(runs[0].config), cost.note)
    return runs_document(runs, [cost.rows(run.config) for run in runs], cost.note)


def folder_of(workdirs: Sequence[Path]) -> Path:
    """Where their report belongs: the folder itself, or the one that holds several."""
    if len(workdirs) == 1:
        return workdirs[0]
    return Path(os.path.commonpath([folder.parent for folder in workdirs]))


def write_report(
    workdirs: Path | str | Sequence[Path],
    cost: CostModel = NO_COST,
    folder: Path | None = None,
) -> Path:
    """Writes `report.html`, `report.md` and the figures of the latter, `<figure>.png`.

    Args:
        workdirs: see `read_document`; one may stand alone.
        cost: see `read_document`.
        folder: where to write to; see `folder_of`.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: see `read_document`.
        DataError: see `read_document`.
    """
    folders = [Path(workdirs)] if isinstance(workdirs, Path | str) else list(workdirs)
    document = read_document(folders, cost)
    return write(document, folder_of(folders) if folder is None else folder)


def write(document: Document, folder: Path) -> Path:
    """Writes a document in both forms; returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in document.pictures():
        plots.save(picture.figure, folder / f"{picture.name}.png")
    (folder / "report.md").write_text(markdown.render(document))
    path = folder / "report.html"
    path.write_text(html_page.render(document))
    return path


def results_text(document: Document) -> str:
    """The tables of the sections that begin with "Results", for a terminal."""
    parts = []
    for section in document.sections:
        if section.title.startswith("Results"):
            tables = [block for block in section.blocks if isinstance(block, Table)]
            parts += [f"{section.title}\n{format_table(table.rows)}" for table in tables[:1]]
    return "\n\n".join(parts)
