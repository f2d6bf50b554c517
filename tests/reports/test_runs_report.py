import json
import re
import shutil

import numpy as np
import pytest

from sft_jax.reports import markdown, report_writer
from sft_jax.reports.sections.run_sections import scored_split
from sft_jax.runs.run_folder import read_run
from sft_jax.tasks import from_run
from sft_jax.tasks.classification_report import classification_report
from sft_jax.types import DataError


@pytest.fixture
def runs(workdir, tmp_path):
    """Two copies of a run, `a-0` and `a-1`; the second one is right where the first one is not."""
    folders = []
    for seed, correct in ((0, [1, 0, 1, 1]), (1, [1, 1, 1, 0])):
        folder = shutil.copytree(workdir, tmp_path / f"a-{seed}")
        evaluation = json.loads((folder / "evaluation_test.json").read_text())
        evaluation["metrics"]["top1"] = {"value": 0.5 + 0.1 * seed, "low": 0.25, "high": 0.75}
        (folder / "evaluation_test.json").write_text(json.dumps(evaluation))
        edit(folder / "config.json", lambda config, seed=seed: config["train"].update(seed=seed))
        write_predictions(folder, correct)
        folders.append(folder)
    return folders


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_predictions(folder, correct, ids=range(4), groups="aabb", labels=(0, 1, 2, 3)):
    """Of four samples in two groups; those that are not `correct` are taken for the next class."""
    label = np.array(labels)
    named = np.where(np.array(correct, bool), label, (label + 1) % 4)
    np.savez(
        folder / "predictions_test.npz",
        id=np.array(list(ids)).astype(str),
        group=np.array(list(groups)),
        label=label,
        probabilities=(np.eye(4)[named] * 0.8 + 0.05).astype(np.float32),
    )


def text_of(folders, *cost):
    return re.sub(r" +", " ", markdown.render(report_writer.read_document(folders, *cost)))


def test_runs_stand_side_by_side(runs, evaluation):
    text = text_of(runs)
    assert "No paired difference" not in text
    assert "fingerprint" not in text
    group = f"{evaluation()['group']['top1']['value']:.1%}"
    assert text.startswith("# 2 runs on synthetic\n")
    assert f"| a-0 | 120 | 40 | 50.0% | 25.0% to 75.0% | - | - | {group} |" in text
    # Group a gains half its samples, b loses them: 0 on the whole, and draws from -50 to +50.
    assert f"| a-1 | 120 | 40 | 60.0% | 25.0% to 75.0% | +0.0 | -50.0 to +50.0 | {group} |" in text
    # Names say that they are seeds of one setting: their mean, and 0.1 / sqrt(2).
    assert "## Spread over seeds" in text
    assert "| a | 2 | 0.55 | 0.0707 | 0.5000 to 0.6000 |" in text
    assert "| a-0 | 10.0 | " in text  # ECE: confidence 0.85, three of four right
    images = re.findall(r"\]\((\w+)\.png\)", text)
    assert images[:4] == ["runs", "confusion_a_0", "confusion_a_1", "reliability"]
    assert images[4:] == [f"curve_{k}_{m}" for k in ("train", "valid") for m in ("loss", "top1")]
    folders = ",".join(map(str, runs))
    assert f"python -m sft_jax.report --workdir='{folders}'" in text or folders in text


@pytest.mark.parametrize(
    "changes",
    [{"ids": range(1, 5)}, {"ids": (1, 0, 2, 3)}, {"groups": "abab"}, {"labels": (0, 1, 2, 0)}],
)
def test_runs_are_paired_only_on_the_same_samples(runs, changes):
    write_predictions(runs[1], [1, 1, 1, 1], **changes)
    read = [read_run(folder) for folder in runs]
    task = from_run(read[0].config, read[0].data)
    scored = {run.workdir.name: scored_split(run, "test", task) for run in read}
    table, _, note, _ = classification_report(scored, list("abcd"))[0].blocks
    assert all("difference" not in row for row in table.rows)
    assert "No paired difference for a-1: predictions are missing, or their ids" in note.parts[0]
    assert note.parts[0].endswith("are not those of a-0.")


def test_other_data_are_reported_and_give_no_spread(runs):
    for folder, fingerprint in zip(runs, ("first", "second"), strict=True):
        edit(folder / "data.json", lambda data, value=fingerprint: data.update(fingerprint=value))
    text = text_of(runs)
    assert "The fingerprint of the data (files, options and splits) is not that of a-0" in text
    spread = text.split("## Spread over seeds")[1].split("\n## ")[0]
    assert "Not given: " in spread
    assert "found the data fingerprint second, expected first, as in" in spread
    assert "| a |" not in spread


def test_runs_with_other_classes_or_numbers_of_samples_are_refused(runs):
    edit(runs[1] / "evaluation_test.json", lambda evaluation: evaluation.update(num_samples=39))
    with pytest.raises(DataError, match="a-1: found 39 samples of the test split, expected 40, as"):
        report_writer.read_document(runs)
    # The same names in another order are other classes.
    edit(runs[1] / "data.json", lambda data: data["class_names"].reverse())
    expected = "a-1: found class names turn, still, down, up, expected class names up, down, still"
    with pytest.raises(DataError, match=expected):
        report_writer.read_document(runs)


def test_runs_without_predictions_still_have_their_scores(runs):
    for folder in runs:
        (folder / "predictions_test.npz").unlink()
    text = text_of(runs)
    assert "| a-1 | 120 | 40 | 60.0% |" in text
    assert "No paired difference for a-1" in text
    assert "## Calibration" not in text


def test_cost_of_each_run(runs):
    rows = iter([{"model": "sft", "forward GFLOP": 0.5}, {"model": "mbt", "forward GFLOP": 2.0}])
    text = text_of(runs, lambda config: [next(rows)], "A note.")
    assert "| a-0 | sft | 0.5 |\n| a-1 | mbt | 2 |" in text
    assert "(pareto.png)" in text


def test_runs_of_one_name_go_by_their_path(runs, workdir):
    other = shutil.copytree(runs[0], workdir.parent / "elsewhere" / "a-0")
    text = text_of([runs[0], other])
    assert f"| {runs[0]} | 120 |" in text
    assert f"| {other} | 120 |" in text


def test_one_run_twice_is_an_error(runs):
    with pytest.raises(DataError, match="expected each run once"):
        report_writer.read_document([runs[0], runs[0]])


def test_runs_share_a_split(runs, evaluation):
    (runs[1] / "evaluation_test.json").rename(runs[1] / "evaluation_valid.json")
    content = json.loads((runs[1] / "evaluation_valid.json").read_text())
    content["split"] = "valid"
    (runs[1] / "evaluation_valid.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a-1: valid\), expected one that all have"):
        report_writer.read_document(runs)
    (runs[0] / "evaluation_valid.json").write_text(json.dumps(evaluation("valid")))
    assert "Evaluated on the valid split." in text_of(runs)
