import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax import config_io
from sft_jax.analysis import report
from sft_jax.config import Config, ModelConfig
from sft_jax.data_config import DataConfig, SyntheticOptions
from sft_jax.training import metrics
from sft_jax.types import CheckpointError, DataError, ModalitySpec

NAMES = ["up", "down", "still", "turn"]


def evaluation(split="test", group=True, n=40, **more):
    rng = np.random.default_rng(3)
    label = np.arange(n) % 4
    probabilities = rng.dirichlet(np.ones(4), n) * 0.5 + 0.5 * np.eye(4)[(label + (label == 3)) % 4]
    return metrics.evaluate(
        probabilities,
        label,
        split=split,
        step=120,
        class_names=NAMES,
        train_counts=np.array([10, 40, 10, 10]),
        group=np.array([f"rec{i % 8}" for i in range(n)]) if group else None,
        replicates=100,
        **more,
    )


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    config = Config(
        modalities=(ModalitySpec(name="m0", length=48, feature_dim=6, k=6),),
        model=ModelConfig(preset="modern", embed_dim=32, num_heads=4),
        data=DataConfig(source="synthetic", options=SyntheticOptions()),
    )
    data = {
        "class_names": NAMES,
        "modalities": [{"name": "m0", "length": 48, "feature_dim": 6}],
        "counts": {"train": [10, 40, 10, 10], "test": [10, 10, 10, 10]},
        "groups": {"test": 8},
        "num_parameters": 12345,
    }
    records = [
        {"kind": "train", "step": 10, "epoch": 0.5, "loss": 1.4, "top1": 0.25},
        {"kind": "valid", "step": 120, "epoch": 6.0, "loss": 0.7, "top1": 0.75},
    ]
    (folder / "config.json").write_text(json.dumps(config_io.to_dict(config)))
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "evaluation_test.json").write_text(json.dumps(evaluation()))
    return folder


def example():
    rng = np.random.default_rng(0)
    return report.Example(
        signals={"m0": rng.normal(size=(48, 6)).astype(np.float32)},
        kept={"m0": np.array([4, 2, 40, -1])},
        saliency={"m0": np.array([0.5, 0.25, 0.125, 0.0], np.float32)},
        spans={"m0": np.stack([np.arange(48), np.arange(1, 49)], axis=1)},
        sampling_rate=50.0,
        title="sample 7 | turn",
    )


def squeezed(text):
    return re.sub(r" +", " ", text)


def test_format_table_by_hand():
    rows = [
        {"name": "a|b", "value": 0.123456, "share": "5.0%", "n": 3},
        {"name": "c", "value": None, "share": "12.5%", "n": 12000},
        {"name": "d", "n": 1, "more": "x\ny"},
    ]
    assert report.format_table(rows) == "\n".join(
        [
            "| name |  value | share |     n | more |",
            "| ---- | -----: | ----: | ----: | ---- |",
            "| a\\|b | 0.1235 |  5.0% |     3 | -    |",
            "| c    |      - | 12.5% | 12000 | -    |",
            "| d    |      - |     - |     1 | x y  |",
        ]
    )


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.none() | st.integers() | st.text(max_size=5)),
        min_size=1,
        max_size=4,
    ).filter(any)
)
@settings(max_examples=300, deadline=None)
def test_format_table_is_a_rectangle_that_markdown_can_read(rows):
    lines = report.format_table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert len({len(line) for line in lines}) == 1
    columns = {key for row in rows for key in row}
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == len(columns) + 1


def test_report_contains_the_numbers_of_the_run(workdir):
    path = report.write_report(workdir)
    text = squeezed(path.read_text())
    result = evaluation()
    top1, loss = result["metrics"]["top1"], result["metrics"]["loss"]
    voted, ranked = result["group"]["top1"], result["metrics"]
    for expected in (
        "# sft on synthetic",
        "sft, preset modern, float32",
        "| parameters | 12,345 |",
        "20 epochs (to step 120), batch 24, seed 0",
        "| m0 | 48 | 6 | 48 | attn_topk | 6 |",
        "| train | 70 | - | 10 | 40 | 10 | 10 |",
        "| test | 40 | 8 | 10 | 10 | 10 | 10 |",
        "## Results on test (step 120)",
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
        "percentile bootstrap over groups",
        f"--workdir='{workdir}' --split=test",
        f"python -m sft_jax.report --workdir='{workdir}'",
    ):
        assert expected in text
    assert "left out" not in text
    for row in result["per_class"]:
        assert f"| {row['class']} | {row['precision']:.1%} | {row['recall']:.1%} |" in text
    images = re.findall(r"\]\((\w+\.png)\)", text)
    assert images == ["learning_curves.png", "confusion.png"]
    assert all((workdir / name).stat().st_size > 5000 for name in images)
    assert not (workdir / "kept_tokens.png").exists()


def test_report_shows_the_training_command_when_the_run_recorded_it(workdir):
    data = json.loads((workdir / "data.json").read_text())
    command = "python -m sft_jax.train --config=configs/x.py --workdir=runs/x"
    (workdir / "data.json").write_text(json.dumps({**data, "command": command}))
    assert f"```bash\n{command}\n" in report.write_report(workdir).read_text()


def test_report_with_many_classes_keeps_its_tables_narrow(workdir):
    data = json.loads((workdir / "data.json").read_text())
    data["class_names"] = [f"class {i}" for i in range(13)]
    data["counts"] = {"train": list(range(1, 14))}
    (workdir / "data.json").write_text(json.dumps(data))
    result = {**evaluation(), "confusion": np.eye(13, dtype=int).tolist()}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = squeezed(report.write_report(workdir).read_text())
    assert "| split | samples | groups | classes | smallest | largest |" in text
    assert "| train | 91 | - | 13 | 1 | 13 |" in text


def test_splits_are_ordered_and_the_first_one_is_drawn(workdir):
    (workdir / "evaluation_valid.json").write_text(json.dumps(evaluation("valid", group=False)))
    (workdir / "evaluation_other.json").write_text(json.dumps(evaluation("other")))
    assert [e["split"] for e in report.read_evaluations(workdir)] == ["test", "valid", "other"]
    text = report.write_report(workdir).read_text()
    assert "![Confusion matrix on test]" in text
    valid = text[text.index("## Results on valid") : text.index("## Results on other")]
    assert "bootstrap over samples" in valid
    assert "group" not in valid


def test_missing_interval_and_absent_class_are_dashes(workdir):
    result = evaluation()
    result["metrics"]["top1"] |= {"low": None, "high": None}
    result["per_class"][3] |= {"support": 0}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = squeezed(report.write_report(workdir).read_text())
    assert f"| top1 | sample | {result['metrics']['top1']['value']:.1%} | - | 40 |" in text
    assert "| turn | - | - | - | 0 |" in text


def test_sentiment_stands_below_with_what_it_leaves_out(workdir):
    value = np.where(np.arange(40) % 5 == 0, 0.0, np.arange(40) % 4 - 1.6)
    result = evaluation(class_values=(-2.0, -1.0, 0.0, 1.0), value=value)
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = squeezed(report.write_report(workdir).read_text())
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
    assert "weighted by what was predicted" in text


def test_what_is_undefined_is_a_dash_and_absent_classes_are_named(workdir):
    result = metrics.evaluate(
        np.eye(4)[[1, 1, 2, 1]] * 0.6 + 0.1,
        np.array([1, 1, 1, 1]),
        split="test",
        step=120,
        class_names=NAMES,
        train_counts=np.array([10, 40, 10, 10]),
        scores=np.zeros((4, 4)),
        replicates=20,
    )
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = squeezed(report.write_report(workdir).read_text())
    assert "| mAUC | sample | - | - | 4 | - |" in text
    assert "| d_prime | sample | - | - | 4 | - |" in text
    assert "left out of the means: up, still, turn." in text
    assert "rank samples by logits" in text


def test_an_evaluation_of_an_earlier_version_is_still_shown(workdir):
    result = evaluation()
    for key in ("ranked_by", "absent_classes", "sentiment"):
        del result[key]
    for name in ("mAP", "mAUC", "d_prime"):
        del result["metrics"][name]
    result["majority"] = {key: result["majority"][key] for key in ("class", "top1")}
    (workdir / "evaluation_test.json").write_text(json.dumps(result))
    text = squeezed(report.write_report(workdir).read_text())
    assert "| 40 | 25.0% (down) |" in text
    assert "mAP" not in text


def test_example_round_trip_and_figure(workdir):
    given_example = example()
    loaded = report.load_example(report.save_example(workdir / "example.npz", given_example))
    for field in dataclasses.fields(report.Example):
        old, new = getattr(given_example, field.name), getattr(loaded, field.name)
        if isinstance(old, dict):
            assert list(new) == ["m0"]
            np.testing.assert_array_equal(new["m0"], old["m0"])
        else:
            assert new == old
    text = report.write_report(workdir, example=loaded).read_text()
    assert "(kept_tokens.png)" in text
    assert (workdir / "kept_tokens.png").stat().st_size > 5000


def test_example_without_saliency(tmp_path):
    bare = dataclasses.replace(example(), saliency=None)
    assert report.load_example(report.save_example(tmp_path / "e.npz", bare)).saliency is None


def test_example_with_a_missing_entry_is_named(tmp_path):
    np.savez(tmp_path / "e.npz", **{"signal/m0": np.zeros((3, 1)), "span/m0": np.zeros((3, 2))})
    with pytest.raises(DataError, match=r"expected also \['kept/m0', 'sampling_rate', 'title'\]"):
        report.load_example(tmp_path / "e.npz")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "sft_jax.train"),
        ("data.json", "sft_jax.train"),
        ("metrics.jsonl", "sft_jax.train"),
        ("evaluation_test.json", "sft_jax.evaluate"),
    ],
)
def test_a_missing_file_names_the_command_that_makes_it(workdir, name, command):
    (workdir / name).unlink()
    named = name.replace("_test", "_<split>")
    with pytest.raises(CheckpointError, match=rf"found no {named}.*python -m {command}"):
        report.write_report(workdir)
    assert not list(workdir.glob("*.png"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: found no JSON"),
        ("data.json", '{"counts": {}}', r"data.json: found \['counts'\], expected also \['class_n"),
        ("evaluation_test.json", "{}", r"expected also \['split'"),
        ("metrics.jsonl", "", "metrics.jsonl: found no record"),
        ("metrics.jsonl", '{"kind": "train", "step": 1}\n{"kin', "line 2: found '{\"kin'"),
        ("metrics.jsonl", "3\n", "line 1: found '3'"),
    ],
)
def test_broken_files_are_named(workdir, name, content, message):
    (workdir / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        report.write_report(workdir)


def test_the_last_record_of_a_step_holds(tmp_path):
    lines = [("train", 20, 1.0), ("train", 10, 2.0), ("valid", 20, 3.0), ("train", 20, 4.0)]
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": kind, "step": step, "loss": loss} for kind, step, loss in lines]
    path.write_text("\n".join(map(json.dumps, records)))
    found = [(r["kind"], r["step"], r["loss"]) for r in report.read_metrics(path)]
    assert found == [("train", 10, 2.0), ("train", 20, 4.0), ("valid", 20, 3.0)]


def test_verb_prints_the_table_and_draws_the_example(workdir):
    report.save_example(workdir / "example.npz", example())
    command = [sys.executable, "-W", "error", "-m", "sft_jax.report"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    table = report.format_table(report.metric_rows(evaluation()))
    assert done.stdout == f"test, step 120\n{table}\n\nreport: {workdir / 'report.md'}\n"
    assert (workdir / "kept_tokens.png").is_file()
    wrong = subprocess.run([*command, f"--workdir={workdir}", "x"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "expected flags alone" in wrong.stdout + wrong.stderr
