"""The tables of the pages are those of the committed studies."""

import re
from pathlib import Path

import pytest

from sft_jax.config.study import load_study
from sft_jax.reports import markdown
from sft_jax.reports.sections.study_report import study_document
from sft_jax.reports.sections.study_tables import StudyTables
from sft_jax.reports.text_tables import format_table
from sft_jax.runs.study_folder import read_study_folder
from sft_jax.tasks import from_study
from sft_jax.tasks.classification_metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()
README = " ".join((ROOT / "README.md").read_text().split())
STUDIES = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/study.json"))
SPEED = (ROOT / "docs" / "performance.md").read_text()


@pytest.fixture(params=STUDIES, ids=lambda path: path.name)
def study(request):
    return read_study_folder(request.param)


def tables(study):
    return StudyTables(study, METRICS)


def test_the_page_leads_to_every_study_and_its_report(study):
    name = study.record["name"]
    assert f"| `{name}` |" in PAGE
    assert f"](results/{name}/report.md)" in PAGE
    report = (study.workdir / "report.md").read_text()
    assert format_table(tables(study).overview()) in report
    assert study.record["protocol"] in report
    if len(study.conditions) > 1:
        assert format_table(tables(study).conditions("sample")) in report


def test_percentages_of_the_page_are_those_of_the_reports():
    """But for those of the publication, and of the demo, which is not kept here."""
    reports = "".join((study / "report.md").read_text() for study in STUDIES)
    measured = set(re.findall(r"\d+\.\d", reports)) | {"87.3", "88.9", "99.6"}
    before, _, rest = PAGE.partition("## The demo")
    text = " ".join((before + rest[rest.index("\n## ") :]).split())
    stated = re.findall(r"(\d+\.\d)(?: \u00b1 \d\.\d)?(?: %|(?= (?:instead of|against) ))", text)
    assert len(stated) > 15
    assert set(stated) <= measured


def test_reports_are_those_of_the_numbers_beside_them(study):
    """But for the sections that need every sample's probabilities, which are not kept here."""
    kept = (study.workdir / "report.md").read_text()
    drawn = markdown.render(study_document(study, from_study(study.record)))
    sections = [part for part in drawn.split("\n## ")[1:] if not part.startswith("Protocol")]
    assert len(sections) >= 2
    for section in sections:
        assert section.strip() in kept
    for figure in re.findall(r"\]\((\w+\.png)\)", kept):
        assert (study.workdir / figure).is_file()


def test_the_numbers_of_the_pitch_are_those_of_the_study():
    """README and the page state how near SFT is to dense fusion, and at what cost."""
    found = read_study_folder(ROOT / "docs" / "results" / "fusion")
    scores = found.summaries("sample", "top1")
    costs = {entry["name"]: entry["forward_gflop"] for entry in found.settings}
    rows = {row["setting"]: row for row in tables(found).overview()}
    text = " ".join(PAGE.split())
    for name in ("sft chosen", "dense"):
        mean, spread = 100 * scores[name].mean, 100 * scores[name].over_seeds
        assert f"{mean:.1f} \u00b1 {spread:.1f} %" in text
        assert f"{mean:.1f} %" in README
        assert rows[name]["MFLOP"] in README
    assert f"costs {costs['dense'] / costs['sft chosen']:.1f} times as much" in text
    assert costs["dense"] >= 6 * costs["sft chosen"]


def test_what_was_chosen_is_what_validation_prefers():
    """The fusion study's second SFT is the best of the choice study on validation subjects."""
    found = read_study_folder(ROOT / "docs" / "results" / "choice")
    best = found.summaries("sample", "top1", split="valid")
    costs = {entry["name"]: entry["forward_gflop"] for entry in found.settings}
    dense = costs["dense 0+3"]
    chosen = max((n for n in best if 6 * costs[n] <= dense), key=lambda n: best[n].mean)
    overrides = {entry["name"]: entry["overrides"] for entry in found.settings}[chosen]
    fusion = load_study(ROOT / "configs" / "studies" / "fusion.py")
    setting = next(setting for setting in fusion.settings if setting.name == "sft chosen")
    assert setting.overrides == overrides


@pytest.mark.parametrize(
    ("setting", "pool", "attention"),
    [
        ("attn_topk", "attn_topk", "dense"),
        ("sft", "cls_topk", "dense"),
        ("fixed", "cls_topk", "fixed"),
    ],
)
def test_accuracy_beside_speed_is_that_of_the_study(setting, pool, attention):
    """The short table of docs/performance.md repeats numbers of the study."""
    found = read_study_folder(ROOT / "docs" / "results" / "fusion")
    cells = [next(row["MFLOP"] for row in tables(found).costs() if row["setting"] == setting)]
    for level in ("sample", "group"):
        rows = tables(found).settings(level)
        row = next(row for row in rows if row["setting"] == setting)
        cells += [row["top1"], row["sd over seeds"]]
    expected = [pool, attention, *map(str, cells)]
    lines = [re.split(r" *\| *", line.strip("| ")) for line in SPEED.splitlines()]
    assert expected in lines
