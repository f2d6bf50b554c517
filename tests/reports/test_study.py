"""Reports of studies: statistics by hand, tables, and what may be missing."""

import json
import re

import numpy as np
import pytest

from sft_jax.reports import markdown, report_writer
from sft_jax.reports.sections.study_tables import StudyTables
from sft_jax.runs.study_folder import read_study_folder, summarise
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.types import CheckpointError, DataError

# Scores of `sft`, [folds, seeds]; `dense` is 0.02 less but for one run, where it is 0.01 more.
TABLE = np.array([[0.80, 0.82], [0.70, 0.74], [0.90, 0.84]])


def top1(setting, fold, seed):
    value = TABLE[int(fold[-1]), seed]
    if setting == "sft":
        return value
    return value + (0.01 if (fold, seed) == ("fold2", 1) else -0.02)


def text_of(folder):
    return re.sub(r" +", " ", markdown.render(report_writer.read_document([folder])))


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_summary_by_hand():
    found = summarise(TABLE)
    assert found.mean == pytest.approx(0.8)
    # Seeds' means 0.8 and 0.8; folds' means 0.81, 0.72, 0.87.
    assert found.over_seeds == pytest.approx(0)
    np.testing.assert_allclose(found.by_fold, [0.81, 0.72, 0.87])
    assert found.over_folds == pytest.approx(np.sqrt((0.01**2 + 0.08**2 + 0.07**2) / 2))
    assert found.runs == 6


def test_summary_of_what_is_there():
    nan = np.nan
    one = summarise(np.array([[nan, nan], [nan, 0.5]]))
    assert (one.mean, one.over_seeds, one.over_folds, one.runs) == (0.5, None, None, 1)
    # Fold 1 has not run at all, and seed 1 lacks fold 2: only seed 0 has all there is.
    part = summarise(np.array([[0.5, 0.7], [nan, nan], [0.6, nan]]))
    assert part.mean == pytest.approx(0.6)
    assert part.over_seeds is None
    assert part.by_fold.tolist() == [0.6]
    assert part.runs == 3
    with pytest.raises(DataError, match="found no run"):
        summarise(np.full((2, 2), nan))


def test_validation_stands_beside_the_test_split_where_there_is_one(study):
    text = text_of(study(top1, valid=lambda *run: 1.05 - top1(*run)))
    found = section(text, "Validation")
    assert "| sft | 6 | 25.0% | 0.0 | 7.5 | - | - | - | - |" in found
    assert "| dense | 6 | 26.5% | 0.7 | 8.3 | +1.5 | 0.7 | 0.9 | 5 of 6 |" in found
    assert "| sft | 6 | 80.0% | 0.0 | 7.5 | - | - | - | - |" in section(text, "Results")


def test_tables_by_hand(study):
    text = text_of(study(top1))
    assert "## Validation" not in text
    assert text.startswith("# A toy study\n\nThree folds by subject;")
    results = section(text, "Results")
    assert "| sft | 80.0% \u00b1 0.0 | 85.0% \u00b1 0.0 | 4.00 | 100 | 20 |" in results
    assert "| dense | 78.5% \u00b1 0.7 | 83.5% \u00b1 0.7 | 8.00 | 100 | 40 |" in results
    # Differences: five of -2 points and one of +1; seeds' means -2 and -1, folds' -2, -2, -0.5.
    assert "| sft | 6 | 80.0% | 0.0 | 7.5 | - | - | - | - |" in results
    assert "| dense | 6 | 78.5% | 0.7 | 8.3 | -1.5 | 0.7 | 0.9 | 1 of 6 |" in results
    assert "| sft | 6 | 85.0% | 0.0 | 7.5 | - | - | - | - |" in results  # per group
    assert "| sft | 0.2000 \u00b1 0.0000 | 0.1500 \u00b1 0.0000 |" in results  # other metrics
    assert "| sft, top1 per sample | 80.0% \u00b1 0.0 | the first setting |" in text
    assert "| Runs | 12 of 12 | 2 settings, 3 folds, 2 seeds |" in text
    cost = section(text, "Accuracy against cost")
    assert "| sft | sft | 1,000 | 4.00 | 100% | 100 | 20 | yes |" in cost
    assert "| dense | sft | 1,001 | 8.00 | 200% | 100 | 40 | no |" in cost
    assert "MFLOP counts matrix products alone" in cost
    missing = section(text, "Something missing at test time")
    assert "| setting | complete | without gyroscope |" in missing
    assert "| sft | 80.0% \u00b1 0.0 | 70.0% \u00b1 0.0 |" in missing
    # Five of six right, all with confidence 0.9: off by 1/6 in the one and 0.9 - 5/6 on the whole.
    assert "| sft | 6.7 | 0.0 | 90.0% | 83.3% | +6.7 |" in section(text, "Calibration")
    protocol = section(text, "Protocol")
    assert "| sft | modalities.\\*.pool = sft |" in protocol
    assert "| fold0 | subject fold0 |" in protocol
    assert "Seeds: 0, 1." in protocol
    assert "python -m sft_jax.sweep --config=configs/studies/toy.py" in protocol
    images = re.findall(r"\]\((\w+)\.png\)", text)
    assert images == [
        *("settings_sample", "settings_group", "pareto_sample", "pareto_group"),
        *("conditions_sample", "conditions_group", "confusion_sft", "reliability"),
        *("curve_valid_top1", "curve_train_loss"),
    ]


def test_the_best_setting_stands_beside_the_first(study):
    folder = study(lambda setting, fold, seed: 0.6 if setting == "sft" else 0.7)
    assert StudyTables(read_study_folder(folder), METRICS).best_setting() == "dense"
    text = text_of(folder)
    assert "| sft, top1 per sample | 60.0% \u00b1 0.0 | best: dense, +10.0 |" in text
    assert "(confusion_sft.png)\n![Confusion matrix of dense](confusion_dense.png)" in text


def test_one_seed_and_one_fold_have_no_deviation(study):
    text = text_of(study(top1, seeds=(0,), folds=("fold0",)))
    assert "| sft | 1 | 80.0% | - | - | - | - | - | - |" in text
    assert "| dense | 1 | 78.0% | - | - | -2.0 | - | - | 0 of 1 |" in text
    assert "| sft, top1 per sample | 80.0% | the first setting |" in text


def test_a_study_that_is_still_running(study):
    def run(setting, fold, seed):
        return setting == "sft" or (setting == "dense" and (fold, seed) == ("fold2", 1))

    text = text_of(study(top1, settings=("sft", "dense", "late"), run=run))
    results = section(text, "Results")
    assert "| dense | 1 | 85.0% | - | - | +1.0 | - | - | 1 of 1 |" in results
    assert "late" not in results
    assert "| Runs | 7 of 18 |" in text


def test_settings_without_a_run_in_common_have_no_difference(study):
    def run(setting, fold, seed):
        return (setting == "sft") == (seed == 0)

    results = section(text_of(study(top1, run=run)), "Results")
    # 0.80, 0.72 and 0.85.
    assert "| dense | 3 | 79.0% | - | 6.6 |\n" in results


def test_what_was_not_recorded_is_left_out(study):
    text = text_of(
        study(top1, levels=("sample",), conditions=("complete",), predictions=False, curves=False)
    )
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert titles == ["Results", "Accuracy against cost", "Protocol"]
    assert "per group" not in text


def test_a_study_writes_its_report_into_its_folder(study):
    folder = study(top1, levels=("sample",), conditions=("complete",), curves=False)
    assert (
        report_writer.write_report(report_writer.read_document([folder]), folder)
        == folder / "report.html"
    )
    images = re.findall(r"\]\((\w+\.png)\)", (folder / "report.md").read_text())
    assert all((folder / name).stat().st_size > 3000 for name in images)


def test_curves_may_be_against_epochs(study):
    folder = study(top1)
    path = folder / "curves.csv"
    path.write_text(path.read_text().replace("step", "epoch", 1))
    found = read_study_folder(folder)
    assert found.axis == "epoch"
    curve = found.curves["sft", "valid top1"]
    assert curve.steps.tolist() == [10, 20]
    np.testing.assert_allclose(curve.values[1], TABLE)


def test_a_line_does_not_make_room_for_any_number_of_runs(study):
    folder = study(top1)
    read_study_folder(folder)
    record = json.loads((folder / "study.json").read_text())
    record["folds"] += [{**record["folds"][0], "name": f"f{i}"} for i in range(5000)]
    record["seeds"] += list(range(1000, 6000))
    (folder / "study.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"results.csv: found lines for [0-9,]+ values, most of"):
        read_study_folder(folder)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("results.csv", lambda text: None, CheckpointError, "found no results.csv.*sft_jax.sweep"),
        ("results.csv", lambda text: text.splitlines()[0], CheckpointError, "found no score"),
        ("results.csv", lambda text: text.replace("level", "l", 1), DataError, r"also \['level'\]"),
        (
            "results.csv",
            lambda text: text.replace("sft", "x", 1),
            DataError,
            "line 2: found setting",
        ),
        ("results.csv", lambda text: text.replace("fold0,0", "fold0,7", 1), DataError, "seed '7'"),
        ("results.csv", lambda text: text.replace("0.8\n", "?\n", 1), DataError, r"value '\?'"),
        ("curves.csv", lambda text: text.replace("fold0", "f", 1), DataError, "curves.csv, line 2"),
        ("study.json", lambda text: "{}", CheckpointError, "expected also"),
    ],
)
def test_broken_folders_are_named(study, name, change, error, message):
    folder = study(top1)
    path = folder / name
    text = change(path.read_text())
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(error, match=message):
        read_study_folder(folder)


def test_a_study_stands_alone(study, workdir):
    with pytest.raises(CheckpointError, match="given with 1 other folders, expected a study alone"):
        report_writer.read_document([study(top1), workdir])


def test_costs_that_are_not_known_yet(study):
    folder = study(top1)
    record = json.loads((folder / "study.json").read_text())
    for entry in record["settings"]:
        for key in ("model", "num_parameters", "forward_gflop", "tokens_in", "tokens_kept"):
            del entry[key]
    (folder / "study.json").write_text(json.dumps(record))
    text = text_of(folder)
    assert "pareto" not in text
    assert "| sft | - | - | - | - | - | - |" in section(text, "Accuracy against cost")


def reverse_stored(path, entry):
    """Reverses the order of an entry of stored predictions, so that they are of other samples."""
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, entry: arrays[entry][::-1]})


def test_settings_tested_on_other_samples_are_not_paired(study):
    folder = study(top1, settings=("sft", "dense", "late"), valid=top1)
    # One fold is enough: differences are means over all folds.
    reverse_stored(folder / "predictions" / "dense-fold1.npz", "id")
    note = (
        "No paired difference for dense: the ids or labels of the test samples are not those of "
        "sft."
    )
    text = text_of(folder)
    for part in (section(text, "Validation"), section(text, "Results")):
        assert note in part
        assert "| dense | 6 | 78.5% | 0.7 | 8.3 | - | - | - | - |" in part
        assert "| late | 6 | 78.5% | 0.7 | 8.3 | -1.5 | 0.7 | 0.9 | 1 of 6 |" in part
    printed = StudyTables(read_study_folder(folder), METRICS).scores_text()
    assert note in printed
    assert printed.count("-1.5") == 2  # `late`, per sample and per group


def test_labels_tell_samples_apart_too(study):
    folder = study(lambda setting, fold, seed: 0.6 if setting == "sft" else 0.7)
    assert read_study_folder(folder).unpaired_settings == []
    reverse_stored(folder / "predictions" / "dense-fold0.npz", "label")
    assert read_study_folder(folder).unpaired_settings == ["dense"]
    assert "| best: dense, on other samples |" in text_of(folder)
