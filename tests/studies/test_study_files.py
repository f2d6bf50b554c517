"""Every file of configs/studies/ runs with its documented command, made small."""

import json
from pathlib import Path

import pytest
from command_worker import started
from slow import corners
from small_files import digits, utterances

from sft_jax.config.study import load_study
from sft_jax.reports.report_writer import read_document, results_text

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
FILES = {"views": digits, "vowels": utterances}
# A setting of each study that compiles quickly, and among them models with and without pools.
QUICKEST = {
    "choice": "max 8 0+1",
    "fusion": "concat",
    "pools": "avg",
    "time": "dense",
    "training": "layers 0+1",
    "views": "concat",
    "vowels": "late",
}
SMALL_STUDY = """
import dataclasses

from sft_jax.config.io import override
from sft_jax.config.study import load_study


def get_study():
    study = load_study({study!r})
    return dataclasses.replace(study, base=override(study.base, {changes!r}))
"""
SMALL = {
    "model.embed_dim": 8,
    "model.num_heads": 2,
    "model.num_pre_layers": 0,
    "model.num_post_layers": 1,
    "train.duration": "2 steps",
    "train.eval_every": "1 steps",
    "train.best_after": "2 steps",
    "train.batch_size": 4,
    "optimizer.warmup": "1 steps",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Folder of prepared data, which the smartwatch studies share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(data_dir, quick_flags):
    with started(data_dir, XLA_FLAGS=quick_flags) as run:
        yield run


def small_study(folder, name, data_dir):
    """A file with the study `name`, on little data with a small model and two steps."""
    changes = SMALL | {"data.data_dir": str(data_dir)}
    if name in FILES:
        changes["data.options.path"] = FILES[name](folder)
    else:
        changes["data.options.step"] = 400  # fewer windows of the same length
    path = folder / f"{name}.py"
    path.write_text(SMALL_STUDY.format(study=str(STUDIES / f"{name}.py"), changes=changes))
    return path


@pytest.mark.parametrize("settings", corners(["quickest", "all"], "quickest"))
@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.py")))
def test_a_study_runs_and_is_reported(name, settings, data_dir, run, tmp_path):
    config = small_study(tmp_path, name, data_dir)
    fold = "given" if name == "vowels" else "fold0"
    command = ["sweep", f"--config={config}", f"--workdir={tmp_path / 'study'}"]
    command += [f"--folds={fold}", "--seeds=0"]
    described = [setting.name for setting in load_study(config).settings]
    expected = [QUICKEST[name]] if settings == "quickest" else described
    command.append(f"--settings={','.join(expected)}")
    code, output = run(*command)
    assert code == 0, output[-3000:]
    assert "top1 per sample:" in output
    assert all(setting in output for setting in expected)
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    finished = [entry["name"] for entry in record["settings"] if "num_parameters" in entry]
    assert finished == expected
    assert "sample" in results_text(read_document([tmp_path / "study"]))
