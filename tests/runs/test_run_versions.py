import json

import jax
import numpy as np
import optax
import pytest

from sft_jax.config.io import to_dict
from sft_jax.config.model import ConcatOptions, ModelConfig
from sft_jax.config.run import Config
from sft_jax.config.task import TaskConfig
from sft_jax.runs import run_files, schema
from sft_jax.runs.run_folder import read_run
from sft_jax.training.checkpoint import Checkpoints
from sft_jax.training.state import Progress
from sft_jax.types import CheckpointError, ConfigError
from sft_jax.version import __version__

DATA = {"fingerprint": "f", "class_names": ["a"], "modalities": [], "counts": {}}
# As a version without schemas wrote it; settings that came later keep their defaults.
OLD_CONFIG = {
    "modalities": {"m": {"length": 12, "feature_dim": 4, "pool": "attn_topk", "k": 3}},
    "model": {"name": "sft", "embed_dim": 16, "num_heads": 2},
    "data": {"source": "synthetic"},
    "train": {"batch_size": 8, "duration": "24 steps"},
}


@pytest.fixture
def workdir(tmp_path):
    """The folder of a run that an older version has begun."""
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG))
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 2, "loss": 0.5}\n')
    return tmp_path


def stamp(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_the_folder_of_an_older_version_goes_on(workdir):
    config = run_files.read_config(workdir)
    assert (config.modalities[0].k, config.train.batch_size) == (3, 8)
    before = {path.name: path.read_text() for path in workdir.iterdir()}
    run_files.open_run(workdir, config, DATA)
    assert {path.name: path.read_text() for path in workdir.iterdir()} == before


# What training stores: the data have chosen the task.
RESOLVED = Config(task=TaskConfig(name="classification"))


def test_a_new_folder_says_what_wrote_it(tmp_path):
    run_files.open_run(tmp_path, RESOLVED, DATA)
    for name, content in (("config.json", to_dict(RESOLVED)), ("data.json", DATA)):
        stored = json.loads((tmp_path / name).read_text())
        assert (stored.pop("schema"), stored.pop("sft_jax")) == (schema.SCHEMA, __version__)
        assert stored == json.loads(json.dumps(content))
    assert (run_files.read_config(tmp_path), run_files.read_data(tmp_path)) == (RESOLVED, DATA)


def test_a_run_of_a_version_without_tasks_is_a_classification(tmp_path):
    run_files.open_run(tmp_path, RESOLVED, DATA)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["task"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_files.read_config(tmp_path) == RESOLVED
    run_files.open_run(tmp_path, RESOLVED, DATA)  # and goes on as one


@pytest.mark.parametrize("name", ["config.json", "data.json"])
@pytest.mark.parametrize(
    "read", [lambda d: run_files.open_run(d, run_files.read_config(d), DATA), read_run]
)
def test_a_newer_folder_names_the_version_to_install(workdir, name, read):
    # What is unknown of a newer version is not looked at first.
    stamp(workdir / name, schema=schema.SCHEMA + 1, sft_jax="7.8.9", fresh=1)
    with pytest.raises(
        CheckpointError, match=rf"{name}: found schema 3, written by .*install sft_jax 7\.8\.9"
    ):
        read(workdir)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, None, [1]])
def test_a_schema_that_is_none(workdir, value):
    stamp(workdir / "config.json", schema=value)
    with pytest.raises(CheckpointError, match=r"config.json: found schema .*expected a whole"):
        run_files.read_config(workdir)


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 10**5, "\udc80", ""])
def test_a_file_that_is_no_object(tmp_path, content):
    (tmp_path / "data.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"data.json: found"):
        run_files.read_data(tmp_path)


def test_data_without_a_fingerprint(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data.json: found \[\], expected also \['finger"):
        run_files.read_data(tmp_path, "fingerprint")


BASELINE = {
    "modality": "",
    "window": 3,
    "duplicate_cls": False,
    "num_bottlenecks": 4,
    "exchange": "sequential",
    "fuse_at": -1,
}


@pytest.mark.parametrize("schema_of_file", [0, 1])
def test_the_baseline_of_an_older_version_becomes_options(workdir, schema_of_file):
    model = {"name": "concat", "baseline": BASELINE}
    stamp(workdir / "config.json", model=model, schema=schema_of_file)
    assert run_files.read_config(workdir).model == ModelConfig(
        name="concat", options=ConcatOptions(window=3)
    )
    kept = schema.accepted({"schema": schema_of_file, "model": model}, workdir / "config")
    assert kept == {"model": {"name": "concat", "options": {"window": 3}}}


@pytest.mark.parametrize("model", [3, {"baseline": 3}, {"name": [], "baseline": {"window": 3}}])
def test_a_broken_model_of_an_older_version_is_refused(workdir, model):
    stamp(workdir / "config.json", model=model)
    with pytest.raises(ConfigError, match="model"):
        run_files.read_config(workdir)


def test_the_settings_of_an_older_study_name_options(tmp_path):
    settings = [{"name": "a", "overrides": {"model.baseline.window": 8, "model.name": "concat"}}]
    study = {"base": {"model": {"name": "sft", "baseline": BASELINE}}, "settings": settings}
    upgraded = schema.accepted(study, tmp_path / "study.json")
    assert upgraded["base"] == {"model": {"name": "sft", "options": {}}}
    assert upgraded["settings"][0]["overrides"] == {
        "model.options.window": 8,
        "model.name": "concat",
    }


def test_every_upgrade_is_made_in_order(monkeypatch, tmp_path):
    steps = tuple(
        lambda name, content, i=i: {**content, "seen": [*content.get("seen", []), (name, i)]}
        for i in range(3)
    )
    monkeypatch.setattr(schema, "UPGRADES", steps)
    monkeypatch.setattr(schema, "SCHEMA", len(steps))
    path = tmp_path / "data.json"
    assert schema.accepted({}, path)["seen"] == [("data.json", i) for i in range(3)]
    assert schema.accepted({"schema": 2}, path)["seen"] == [("data.json", 2)]
    assert schema.accepted(schema.stamped({"a": 1}), path) == {"a": 1}


def test_a_checkpoint_of_a_newer_version_is_refused(tiny, tmp_path):
    state = tiny.linear_state(optax.sgd(1e-3)).replace(step=jax.numpy.int32(5))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    newer = {**schema.stamped({}), "schema": schema.SCHEMA + 1, "sft_jax": "7.8.9"}
    for folder, config in (("new", newer), ("same", schema.stamped({})), ("old", {"model": {}})):
        checkpoints = Checkpoints(tmp_path / folder, config=config)
        checkpoints.save("last", state, Progress(data={}))
        checkpoints.wait()
        if folder == "new":
            with pytest.raises(CheckpointError, match=r"5/config: found schema 3.*7\.8\.9"):
                checkpoints.restore("last", abstract)
        else:
            got, _ = checkpoints.restore("last", abstract)
            jax.tree.map(np.testing.assert_array_equal, got, state)
        checkpoints.close()
