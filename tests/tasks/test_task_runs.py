"""Multi-label and regression through every command: train, evaluate, predict, export, sweep."""

import dataclasses
import json

import jax
import jax.export
import numpy as np
import pytest
from run_fixtures import training_on_one_device

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig
from sft_jax.config.study import Setting, Study
from sft_jax.config.task import MultilabelOptions, RegressionOptions, TaskConfig
from sft_jax.interop.artefacts.stablehlo import Exportable, inference
from sft_jax.reports.report_writer import read_document, write_report
from sft_jax.runs import run_files
from sft_jax.runs.study_folder import read_study_folder
from sft_jax.studies.results import Results
from sft_jax.studies.setting_runs import train_setting
from sft_jax.training import session
from sft_jax.training.predictor import load

TASKS = {
    "multilabel": TaskConfig(
        name="multilabel",
        options=MultilabelOptions(thresholds="validation", pos_weight="balanced"),
    ),
    "regression": TaskConfig(name="regression", options=RegressionOptions(level=0.8)),
}
TARGETS = {"multilabel": "labels", "regression": "value"}
MAIN = {"multilabel": "mAP", "regression": "mae"}


def write_data(path, task):
    """Sequences whose mean is the hidden state of each sample, with targets of it."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(120, 2))
    a, b = (rng.normal(0, 0.2, (120, t, f)) for t, f in ((6, 3), (5, 2)))
    a[:, :, 0] += hidden[:, :1]
    b[:, :, 1] += hidden[:, 1:]
    target = (hidden > 0).astype(float) if task == "multilabel" else 10 * hidden + [50, 0]
    target[rng.random(target.shape) < 0.1] = np.nan
    np.savez(path, a=a, b=b, weight=rng.integers(1, 3, 120), **{TARGETS[task]: target})
    return {"a": a[:7], "b": b[:7]}


def config_of(folder, task):
    return Config(
        task=TASKS[task],
        model=ModelConfig(
            preset="modern", embed_dim=8, num_heads=2, num_pre_layers=0, num_post_layers=1
        ),
        data=DataConfig(
            source="arrays",
            options=ArraysOptions(path=str(folder / "mine.npz")),
            data_dir=str(folder / "prepared"),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        train=TrainConfig(duration=Duration(6.0, "epochs"), batch_size=16, best_metric=MAIN[task]),
    )


@pytest.fixture(scope="module", params=TASKS)
def run(request, tmp_path_factory):
    """Task, folder, run, its evaluation, and arrays to predict."""
    folder = tmp_path_factory.mktemp(request.param)
    arrays = write_data(folder / "mine.npz", request.param)
    config = config_of(folder, request.param)
    with training_on_one_device():
        session.train(config, folder / "run")
        evaluation = session.evaluate(folder / "run", ablate=True)
    return request.param, folder, evaluation, arrays


def test_it_learns_and_beats_the_baseline(run):
    task, folder, evaluation, _ = run
    value = evaluation.metrics["metrics"][MAIN[task]]
    baseline = evaluation.metrics["baseline"]["metrics"][MAIN[task]]
    assert value["low"] <= value["value"] <= value["high"]
    if task == "multilabel":
        assert value["low"] > baseline
    else:
        assert value["high"] < baseline / 2
    stored = json.loads((folder / "run" / "evaluation_test.json").read_text())
    assert stored["metrics"] == evaluation.metrics["metrics"]
    assert set(json.loads((folder / "run" / "ablation_test.json").read_text())["without"]) == {
        "a",
        "b",
    }


def test_the_best_checkpoint_is_the_best_validation_by_the_chosen_metric(run):
    task, folder, *_ = run
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    valid = {r["step"]: r[MAIN[task]] for r in records if r["kind"] == "valid"}
    choose = max if task == "multilabel" else min
    assert evaluation_step(run) == choose(valid, key=lambda step: (valid[step], -step))


def evaluation_step(run):
    return run[2].metrics["step"]


def test_the_decision_is_stored_and_used_by_a_loaded_run(run):
    task, folder, evaluation, arrays = run
    decision = run_files.read_decision(folder / "run", evaluation_step(run))
    assert run_files.read_decision(folder / "run", evaluation_step(run) + 1) is None
    predictor = load(folder / "run")
    prediction = predictor.predict(arrays)
    if task == "multilabel":
        assert predictor.task.thresholds == tuple(decision["thresholds"])
        expected = prediction.probabilities >= np.float32(decision["thresholds"])
        np.testing.assert_array_equal(prediction.labels, expected)
        assert prediction.label_names == ("0", "1")
    else:
        widths = prediction.high - prediction.value
        np.testing.assert_allclose(widths, [decision["widths"]] * 7, rtol=1e-5)
        coverage = evaluation.metrics["metrics"]["interval_coverage"]["value"]
        assert 0.5 < coverage <= 1
        assert prediction.value_names == ("value_0", "value_1")
    with pytest.raises(AttributeError, match="has no 'predicted', but"):
        _ = prediction.predicted


def test_predictions_of_a_run_are_those_of_its_evaluation(run):
    _, folder, evaluation, _ = run
    records = list(evaluation.session.source.split("test"))
    arrays = {name: np.stack([r["inputs"][name] for r in records]) for name in "ab"}
    prediction = load(folder / "run").predict(arrays)
    for name, values in prediction.answers.items():
        np.testing.assert_allclose(values, evaluation.predictions[name], atol=1e-4, err_msg=name)


def test_the_decision_is_inside_an_exported_model(run):
    _, folder, _, arrays = run
    predictor = load(folder / "run")
    prediction = predictor.predict(arrays)
    given = {name: np.float32(x) for name, x in arrays.items()}
    given |= {f"mask/{name}": np.ones(x.shape[:2], bool) for name, x in arrays.items()}
    outputs = jax.jit(inference(Exportable.of(predictor)))(given)
    for name, values in prediction.answers.items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-4, err_msg=name)


def test_a_study_of_it_is_stored_and_reported(run, tmp_path):
    task, folder, *_ = run
    base = config_of(folder, task)
    steps = Duration(6.0, "steps")
    train = dataclasses.replace(base.train, duration=steps, eval_every=steps)
    base = dataclasses.replace(base, train=train)
    study = Study(
        name="toy",
        title="Toy",
        protocol="",
        base=base,
        settings=(Setting(name="a", overrides={}),),
        folds=(Setting(name="all", overrides={}),),
        seeds=(0, 1),
    )
    results = Results(tmp_path, study)
    results.add(
        study.settings[0],
        train_setting(study, study.settings[0], study.folds),
        lambda config: {"num_parameters": 1},
    )
    stored = read_study_folder(tmp_path)
    assert stored.metric == MAIN[task]
    assert write_report(read_document([tmp_path]), tmp_path).is_file()


def test_its_report_has_the_sections_of_the_task(run):
    task, folder, *_ = run
    page = write_report(read_document([folder / "run"]), folder / "run").with_suffix(".md")
    text = page.read_text()
    words = {
        "multilabel": ("By label", "Precision and recall", "Calibration"),
        "regression": ("By number", "Predictions"),
    }
    for word in (*words[task], "Results on test", "Without a modality"):
        assert word in text, word
