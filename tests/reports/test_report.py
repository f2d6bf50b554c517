import json
import re
import subprocess
import sys

import numpy as np
import pytest

from sft_jax.reports import markdown, report_writer
from sft_jax.reports.text_tables import format_table
from sft_jax.runs import evaluation_files, example_file
from sft_jax.tasks import classification_scores
from sft_jax.tasks.classification_report import metric_rows
from sft_jax.types import CheckpointError, DataError


def text_of(*workdirs):
    """The Markdown of a report, its tables without padding."""
    return re.sub(r" +", " ", markdown.render(report_writer.read_document(workdirs)))


def test_report_contains_the_numbers_of_the_run(workdir, evaluation):
    path = report_writer.write_report(report_writer.read_document([workdir]), workdir)
    assert path == workdir / "report.html"
    text = re.sub(r" +", " ", (workdir / "report.md").read_text())
    result = evaluation()
    top1, loss = result["metrics"]["top1"], result["metrics"]["loss"]
    voted, ranked = result["group"]["top1"], result["metrics"]
    for expected in (
        "# sft on synthetic",
        "Run `a run`, trained to step 120 and evaluated on 40 samples in 8 groups of the test ",
        f"| Top-1 accuracy per group | {voted['value']:.1%} | {voted['low']:.1%} to "
        f"{voted['high']:.1%} |",
        "sft, preset modern, float32",
        "| parameters | 12,345 |",
        "20 epochs (to step 120), batch 24, seed 0",
        "| m0 | 48 | 6 | 48 | attn_topk | 6 |",
        "| train | 70 | - | 10 | 40 | 10 | 10 |",
        "| test | 40 | 8 | 10 | 10 | 10 | 10 |",
        "## Results on test\n",
        f"| top1 | sample | {top1['value']:.1%} | {top1['low']:.1%} to {top1['high']:.1%} | 40 "
        "| 25.0% (down) |",
        f"| loss | sample | {loss['value']:.4f} | {loss['low']:.4f} to {loss['high']:.4f} | 40 "
        "| - |",
        f"| mAP | sample | {ranked['mAP']['value']:.1%} | {ranked['mAP']['low']:.1%} to "
        f"{ranked['mAP']['high']:.1%} | 40 | 25.0% |",
        f"| mAUC | sample | {ranked['mAUC']['value']:.1%} |",
        f"| d_prime | sample | {ranked['d_prime']['value']:.4f} |",
        "mAP, mAUC and d_prime rank samples by probabilities.",
        f"| top1 | group | {voted['value']:.1%} | {voted['low']:.1%} to {voted['high']:.1%} | 8 |",
        "Parameters of step 120. Intervals: 95 %, percentile bootstrap over groups",
        f"--workdir='{workdir}' --split=test",
        f"python -m sft_jax.report --workdir='{workdir}'",
    ):
        assert expected in text
    assert "left out" not in text
    for row in result["per_class"]:
        assert f"| {row['class']} | {row['precision']:.1%} | {row['recall']:.1%} |" in text
    images = re.findall(r"\]\((\w+\.png)\)", text)
    assert images == ["confusion.png", "curve_loss.png", "curve_top1.png"]
    assert all((workdir / name).stat().st_size > 5000 for name in images)
    for absent in ("Calibration", "Without a modality", "Tokens kept", "Cost"):
        assert f"## {absent}" not in text


@pytest.mark.parametrize("place", [("metrics",), ("group",)])
@pytest.mark.parametrize("value", ["missing", None])
def test_an_evaluation_without_the_main_metric_is_named(workdir, evaluation, place, value):
    result = evaluation()
    at = result[place[0]]
    if value is None:
        at["top1"]["value"] = None
    else:
        del at["top1"]
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    message = rf"evaluation_test.json: {place[0]}.top1.value: found None, .*sft_jax.evaluate"
    with pytest.raises(DataError, match=message):
        report_writer.read_document([workdir])


def test_blocks_that_an_evaluation_lacks_are_left_out(workdir, evaluation):
    result = evaluation()
    for key in ("majority", "per_class", "confusion"):
        del result[key]
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    assert "## Confusion" not in text
    assert "By class" not in text
    assert "Majority class" not in text


def test_curves_of_records_without_a_metric_leave_it_out(workdir):
    (workdir / "metrics.jsonl").write_text('{"kind": "valid", "step": 3, "loss": 1.0}\n')
    text = text_of(workdir)
    assert "curve_loss.png" in text
    assert "curve_top1.png" not in text


def test_report_shows_the_training_command_when_the_run_recorded_it(workdir):
    data = json.loads((workdir / "data.json").read_text())
    command = "python -m sft_jax.train --config=configs/x.py --workdir=runs/x"
    (workdir / "data.json").write_text(json.dumps({**data, "command": command}))
    assert f"```bash\n{command}\n" in text_of(workdir)


def test_report_with_many_classes_keeps_its_tables_narrow(workdir, evaluation):
    data = json.loads((workdir / "data.json").read_text())
    data["class_names"] = [f"class {i}" for i in range(13)]
    data["counts"] = {"train": list(range(1, 14))}
    (workdir / "data.json").write_text(json.dumps(data))
    result = {**evaluation(), "confusion": np.eye(13, dtype=int).tolist()}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    assert "| split | samples | groups | classes | smallest | largest |" in text
    assert "| train | 91 | - | 13 | 1 | 13 |" in text


def test_splits_are_ordered_and_the_first_one_is_drawn(workdir, evaluation):
    (workdir / "evaluation_valid.json").write_text(json.dumps(evaluation("valid", group=False)))
    (workdir / "evaluation_other.json").write_text(json.dumps(evaluation("other")))
    assert [e["split"] for e in evaluation_files.read_evaluations(workdir)] == [
        "test",
        "valid",
        "other",
    ]
    text = text_of(workdir)
    assert "![Confusion matrix on test]" in text
    valid = text[text.index("## Results on valid") : text.index("## Results on other")]
    assert "bootstrap over samples" in valid
    assert "group" not in valid


def test_missing_interval_and_absent_class_are_dashes(workdir, evaluation):
    result = evaluation()
    result["metrics"]["top1"] |= {"low": None, "high": None}
    result["per_class"][3] |= {"support": 0}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    assert f"| top1 | sample | {result['metrics']['top1']['value']:.1%} | - | 40 |" in text
    assert "| turn | - | - | - | 0 |" in text


def test_sentiment_stands_below_with_what_it_leaves_out(workdir, evaluation):
    value = np.where(np.arange(40) % 5 == 0, 0.0, np.arange(40) % 4 - 1.6)
    result = evaluation(class_values=(-2.0, -1.0, 0.0, 1.0), value=value)
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    found = result["sentiment"]
    for name, shape, kept, left_out in (
        ("mae", ".4f", 40, 0),
        ("acc7", ".1%", 40, 0),
        ("acc2_nonzero", ".1%", 32, 8),
        ("f1_has0", ".1%", 40, 0),
        ("acc2", ".1%", 24, 16),
    ):
        of = found[name]
        ends = f"{of['low']:{shape}} to {of['high']:{shape}}"
        row = f"| {name} | sample | {of['value']:{shape}} | {ends} | {kept} |"
        assert f"{row} {of['majority']:{shape}} | {left_out} |" in text
    corr = found["corr"]
    ends = f"{corr['low']:.4f} to {corr['high']:.4f}"
    assert f"| corr | sample | {corr['value']:.4f} | {ends} | 40 | - | 0 |" in text
    assert "weighted by how often each answer was predicted" in text


def test_what_is_undefined_is_a_dash_and_absent_classes_are_named(workdir):
    result = classification_scores.evaluate(
        np.eye(4)[[1, 1, 2, 1]] * 0.6 + 0.1,
        np.array([1, 1, 1, 1]),
        split="test",
        step=120,
        class_names=["up", "down", "still", "turn"],
        train_counts=np.array([10, 40, 10, 10]),
        scores=np.zeros((4, 4)),
        replicates=20,
    )
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    assert "| mAUC | sample | - | - | 4 | - |" in text
    assert "| d_prime | sample | - | - | 4 | - |" in text
    assert "left out of the means: up, still, turn." in text
    assert "rank samples by logits" in text


def test_an_evaluation_of_an_earlier_version_is_still_shown(workdir, evaluation):
    result = evaluation()
    for key in ("ranked_by", "absent_classes", "sentiment"):
        del result[key]
    for name in ("mAP", "mAUC", "d_prime"):
        del result["metrics"][name]
    result["majority"] = {key: result["majority"][key] for key in ("class", "top1")}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = text_of(workdir)
    assert "| 40 | 25.0% (down) |" in text
    assert "mAP" not in text


def test_calibration_by_hand(workdir, evaluation):
    # Confidence 0.8 and right, 0.8 and wrong, 0.5 and right, 0.5 and right: gaps 0.3 and 0.5.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5], [0.5, 0.5]], np.float32)
    np.savez(
        workdir / "predictions_test.npz",
        **{"id": np.arange(4), "group": np.array(list("aabb")), "label": np.array([0, 1, 0, 0])},
        probabilities=probabilities,
    )
    text = text_of(workdir)
    # Brier: (0.08 + 1.28 + 0.5 + 0.5) / 4. Over groups of one bin each, ECE is between both gaps.
    assert "| test | 40.0 | 30.0 to 50.0 | 65.0% | 75.0% | -10.0 | 0.5900 |" in text
    assert "expected calibration error over 15 equal bins" in text
    assert "(reliability.png)" in text


def test_ablation_and_kept_tokens(workdir, example):
    estimate = {"value": -0.25, "low": -0.4, "high": -0.125}
    metrics_of = {
        name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in ("top1", "macro_f1", "loss")
    }
    found = {
        "split": "test",
        "step": 120,
        "num_samples": 40,
        "resampled": "group",
        "without": {
            "m0": {
                "num_samples": 30,
                "left_out": 10,
                "metrics": metrics_of,
                "difference": dict.fromkeys(("top1", "macro_f1", "loss"), estimate),
            }
        },
    }
    (workdir / "ablation_test.json").write_text(json.dumps(found))
    kept = np.array([[0, 1, 2], [0, 1, -1], [0, 47, 1], [0, 5, 6]])
    np.savez(
        workdir / "predictions_test.npz",
        **{"id": np.arange(4), "group": np.array(list("aabb")), "label": np.array([0, 1, 2, 3])},
        **{"probabilities": np.eye(4, dtype=np.float32), "kept/m0/indices": kept},
    )
    example_file.save_example(workdir / "example.npz", example)
    text = text_of(workdir)
    row = "| without m0 | 30 | 50.0% | 50.0% | 0.5000 | -25.0 | -40.0 to -12.5 | -0.2500 | 10 |"
    assert row in text
    # 11 slots of 4 samples are filled, with tokens 0, 1, 2, 5, 6 and 47.
    assert "| m0 | attn_topk | 48 | 2.75 | 6 | 1 | token 0 (100%) |" in text
    images = re.findall(r"\]\((\w+)\.png\)", text)
    assert images[2:5] == ["ablation", "tokens_m0", "kept_tokens"]


def test_cost_stands_beside_the_dense_model(workdir):
    rows = [
        {"model": "sft", "parameters": 10, "forward GFLOP": 0.5},
        {"model": "dense", "parameters": 10, "forward GFLOP": 1.75},
    ]
    document = report_writer.read_document([workdir], lambda config: rows, "A note.")
    text = re.sub(r" +", " ", markdown.render(document))
    assert "| GFLOP a sample | 0.5 | dense: 3.5 times |" in text
    assert "| dense | 10 | 1.75 |" in text
    assert "A note." in text


def test_without_validation_the_curves_say_so(workdir):
    record = {"kind": "train", "step": 10, "epoch": 0.5, "loss": 1.4, "top1": 0.25}
    (workdir / "metrics.jsonl").write_text(json.dumps(record))
    assert "*Training; there was no validation.*" in text_of(workdir)


def test_a_folder_that_is_neither_is_named(workdir, tmp_path):
    with pytest.raises(CheckpointError, match=r"neither config.json of a run nor study.json"):
        report_writer.read_document([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: found neither .* sft_jax.train"):
        report_writer.read_document([workdir, tmp_path / "empty"])


def test_where_a_report_goes(tmp_path):
    assert report_writer.default_folder([tmp_path / "a"]) == tmp_path / "a"
    assert report_writer.default_folder([tmp_path / "x" / "a", tmp_path / "y" / "b"]) == tmp_path


def test_verb_prints_the_tables_and_states_the_cost(workdir, evaluation, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "sft_jax.report"]
    output = tmp_path / "elsewhere"
    done = subprocess.run(
        [*command, f"--workdir={workdir}", f"--output={output}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    table = format_table(metric_rows(evaluation()))
    assert done.stdout == f"Results on test\n{table}\n\nreport: {output / 'report.html'}\n"
    text = (output / "report.md").read_text()
    assert re.search(r"## Cost\n\n\| model .*\n.*\n\| sft +\| +\d+ .*\n\| dense ", text)
    assert f"python -m sft_jax.report --workdir='{workdir.name}'\n" in text  # as given from there
    assert not (workdir / "report.md").exists()
    wrong = subprocess.run([*command, f"--workdir={workdir}", "x"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "expected flags alone" in wrong.stdout + wrong.stderr
