"""Runs whose data have moved: contents decide, and the advice of every message can be followed."""

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from doc_pages import load_pages
from run_fixtures import training_on_one_device

from sft_jax.config import Config, Duration, ModelConfig, TrainConfig
from sft_jax.config.data import (
    OPTIONS,
    ArraysOptions,
    DataConfig,
    SyntheticOptions,
    VggsoundHdf5Options,
    path_options,
    relocate,
    with_fixed_paths,
)
from sft_jax.config.io import to_dict
from sft_jax.config.model import OPTIONS as MODEL_OPTIONS
from sft_jax.config.study import Setting, Study
from sft_jax.data.sources import prepare
from sft_jax.runs import run_files
from sft_jax.runs.schema import write_stored
from sft_jax.studies import results
from sft_jax.training import session
from sft_jax.types import CheckpointError, ConfigError, DataError

PACKAGE = Path(__file__).parents[2] / "sft_jax"


def write_arrays(path, seed=0):
    rng = np.random.default_rng(seed)
    np.savez(path, label=np.arange(20) % 2, audio=rng.normal(size=(20, 4, 3)))
    return path


def make_config(path="mine.npz", steps=1):
    return Config(
        model=ModelConfig(embed_dim=8, num_heads=2, num_pre_layers=0, num_post_layers=1),
        data=DataConfig(
            source="arrays", options=ArraysOptions(path=str(path)), data_dir="prepared"
        ),
        train=TrainConfig(duration=Duration(float(steps), "steps"), batch_size=8),
    )


def num_test_records(workdir, **places):
    """Opens the data of a run; evaluation does the same and then computes."""
    fingerprint = run_files.read_data(workdir)["fingerprint"]
    opened = session.reopen(run_files.read_config(workdir), fingerprint, **places)
    return len(opened.source.split("test"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `mine.npz`, `prepared` and `run`, trained with relative paths."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_arrays("mine.npz")
        with training_on_one_device():
            session.train(make_config(), folder / "run")
    return folder


@pytest.fixture
def moved(trained, tmp_path, monkeypatch):
    """A copy of it whose source file is in `elsewhere`, entered."""
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "elsewhere").mkdir()
    (folder / "mine.npz").rename(folder / "elsewhere" / "mine.npz")
    monkeypatch.chdir(folder)
    # The folder of the training does not help.
    stored = json.loads((folder / "run" / "config.json").read_text().replace(str(trained), "."))
    (folder / "run" / "config.json").write_text(json.dumps(stored))
    return folder


def test_stored_paths_are_absolute_and_work_from_any_folder(trained, tmp_path, monkeypatch):
    data = run_files.read_config(trained / "run").data
    assert data.options.path == str(trained / "mine.npz")
    assert data.data_dir == str(trained / "prepared")
    monkeypatch.chdir(tmp_path)
    assert num_test_records(trained / "run") == 4
    assert list(tmp_path.iterdir()) == []


def test_a_stored_relative_path_works_from_the_folder_it_was_started_in(moved):
    (moved / "elsewhere" / "mine.npz").rename(moved / "mine.npz")
    shutil.rmtree(moved / "prepared")
    assert run_files.read_config(moved / "run").data.options.path == "./mine.npz"
    assert num_test_records(moved / "run") == 4


def test_prepared_data_are_found_by_their_contents_without_the_file(moved):
    assert session.evaluate(moved / "run").metrics["num_samples"] == 4


def test_a_run_is_evaluated_with_the_file_at_its_new_place(moved):
    shutil.rmtree(moved / "prepared")
    with pytest.raises(DataError, match=r"nothing at .*data\.options\.path \(--data_path"):
        num_test_records(moved / "run")
    place = {"data_dir": "new", "data_path": ["elsewhere/mine.npz"]}
    assert num_test_records(moved / "run", **place) == 4
    assert (moved / "new" / "arrays").is_dir()


def test_a_file_with_other_contents_is_refused_although_the_right_data_are_prepared(moved):
    write_arrays("other.npz", seed=1)
    with pytest.raises(CheckpointError, match=r"which the run was trained on; .*--data_path"):
        session.evaluate(moved / "run", data_path=["other.npz"])


def test_training_goes_on_with_the_same_contents_alone(moved):
    assert session.train(make_config("elsewhere/mine.npz"), moved / "run").finished
    write_arrays("elsewhere/mine.npz", seed=1)
    with pytest.raises(CheckpointError, match=r"other settings; .*\n  the data itself"):
        session.train(make_config("elsewhere/mine.npz"), moved / "run")


def test_a_renamed_file_is_not_prepared_again(tmp_path):
    data = make_config(write_arrays(tmp_path / "a.npz")).data
    data = dataclasses.replace(data, data_dir=str(tmp_path / "prepared"))
    first = prepare(data)
    path = (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    assert prepare(relocate(data, data_path=[path])).directory == first.directory
    again = prepare(relocate(data, data_path=[path]), force=True)
    assert again.fingerprint == first.fingerprint
    assert again.directory != first.directory
    assert not Path(first.directory).exists()


def test_relocate():
    data = DataConfig(source="vggsound_hdf5", options=VggsoundHdf5Options(train_path="a"))
    moved = relocate(data, "d", ["b", "c"])
    assert (moved.data_dir, moved.options.train_path, moved.options.test_path) == ("d", "b", "c")
    assert relocate(data) == data
    with pytest.raises(ConfigError, match=r"given 1 paths .* expected 2 \(train_path, test_path\)"):
        relocate(data, data_path=["b"])
    with pytest.raises(ConfigError, match="expected none, since it reads no file"):
        relocate(DataConfig(), data_path=["b"])


def test_paths_that_do_not_depend_on_the_working_directory_stay():
    for path in ("", "~/mine.npz", "/data/mine.npz"):
        data = DataConfig(source="arrays", options=ArraysOptions(path=path))
        assert with_fixed_paths(data) == data
    assert with_fixed_paths(DataConfig()).options == SyntheticOptions()


def test_a_study_goes_on_with_data_at_another_place(tmp_path):
    def at(**change):
        data = dataclasses.replace(make_config().data, **change)
        return dataclasses.replace(study, base=dataclasses.replace(study.base, data=data))

    study = Study(
        name="s",
        title="t",
        protocol="p",
        base=make_config(),
        settings=(Setting("a"),),
        folds=(Setting("fold0"),),
        seeds=(0,),
    )
    write_stored(tmp_path / "study.json", results._description(study))
    results.Results(tmp_path, at(data_dir="d", options=ArraysOptions(path="elsewhere/mine.npz")))
    with pytest.raises(CheckpointError, match="differs in base"):
        results.Results(tmp_path, at(normalization="none"))


def test_every_option_that_is_a_path_is_known_as_one():
    names = {field.name for cls in OPTIONS.values() for field in dataclasses.fields(cls)}
    known = {name for cls in OPTIONS.values() for name in path_options(cls)}
    assert {name for name in names if "path" in name} == known


def messages():
    """Module and text of every string of the package that is not a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    getattr(part, "value", "")
                    for part in node.values
                    if isinstance(part, ast.Constant)
                )
            elif isinstance(node, ast.Constant) and id(node) not in docstrings:
                text = node.value if isinstance(node.value, str) else ""
            yield path.relative_to(PACKAGE).as_posix(), text


FLAG = re.compile(r"(?<![\w-])--(?:no(?=distributed))?([a-z][a-z_]*[a-z])(?![\w:-])")
COMMAND = re.compile(r"python -m sft_jax\.([a-z_]+)([^`]*)")
SETTING = re.compile(r"\b(?:data|model|train|optimizer|augment|mixup)(?:\.[a-z_]+)+(?![\w(])")
NO_SETTINGS = (".json", ".lock", ".md", ".npy", ".npz", ".pkl")
# Flags that are not those of a verb: of XLA, a placeholder, and variables of a style sheet.
OTHER_FLAGS = (
    "xla_",
    "name",
    "efficiency/topology.py",
    "interop/artefacts/artefact_files.py",
    "reports/html_page.py",
)
READERS = ("train", "prepare", "evaluate", "export", "sweep")
# Verbs that print the messages of a module which name a flag; elsewhere, any verb may have it.
PRINTED_BY = {
    ("training/checkpoint.py", "checkpoint"): ("evaluate", "predict", "export"),
    ("studies/results.py", "data_path"): ("sweep",),
    ("studies/results.py", "workdir"): ("sweep",),
    ("runs/run_files.py", "workdir"): ("train", "evaluate", "predict", "export"),
    ("files/errors.py", "data_path"): READERS,
    ("data/sources.py", "data_dir"): READERS,
    ("training/session.py", "data_path"): READERS,
    ("training/session.py", "data_dir"): READERS,
}


def test_every_flag_that_a_message_names_is_there_on_the_verbs_that_print_it():
    pages = load_pages()
    flags = {verb: set(pages.flags_of(path)) for verb, path in pages.verbs().items()}
    seen = set()
    every = set().union(*flags.values())
    assert len(flags) > 10
    for module, text in messages():
        for verb, rest in COMMAND.findall(text):
            assert set(FLAG.findall(rest)) <= flags[verb], f"{module}: {verb}: {text}"
        for flag in FLAG.findall(text):
            if module.startswith(OTHER_FLAGS) or flag.startswith(OTHER_FLAGS):
                continue
            seen.add((module, flag))
            assert flag in every, f"{module}: no verb has --{flag}: {text}"
            for verb in PRINTED_BY.get((module, flag), ()):
                assert flag in flags[verb], f"{module}: {verb} has no --{flag}: {text}"
    assert set(PRINTED_BY) <= seen


def test_every_setting_that_a_message_names_exists():
    def names(tree, prefix=""):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else ()

    known = set(names(to_dict(Config())))
    for cls in OPTIONS.values():
        known |= {f"data.options.{field.name}" for field in dataclasses.fields(cls)}
    for cls in MODEL_OPTIONS.values():
        known |= {f"model.options.{field.name}" for field in dataclasses.fields(cls)}
    known.add("model.baseline")  # of configurations that earlier versions stored
    for module, text in messages():
        for setting in SETTING.findall(text):
            if not setting.endswith(NO_SETTINGS):
                assert setting in known, f"{module}: there is no {setting}: {text}"
