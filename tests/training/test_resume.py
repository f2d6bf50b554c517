import errno
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from sft_jax.config.io import from_dict, to_dict
from sft_jax.config.run import Config
from sft_jax.config.task import TaskConfig
from sft_jax.files.errors import convert_disk_errors
from sft_jax.files.json_files import write_json
from sft_jax.runs import run_files
from sft_jax.training import session, sharding
from sft_jax.types import CheckpointError

TOTAL = 24


def logged_step(workdir):
    """The newest step that a running training has written down."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines[:-1]), default=0)


def wait_for_step(process, workdir, step):
    while logged_step(workdir) < step:
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.001)


def assert_same_state(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_straight_run_reports_itself(straight_run, read_run):
    assert "finished at step 24; best" in straight_run.output
    assert "parameters  " in straight_run.output
    # Neither a donation that failed nor a traceback.
    assert "onated" not in straight_run.errors
    assert "Error" not in straight_run.errors
    result = read_run(straight_run.workdir)
    assert (result.last.step, result.best.step in (6, 12, 18, 24)) == (TOTAL, True)
    steps = [record["step"] for record in result.records if record["kind"] == "train"]
    assert steps == sorted({*range(2, 25, 2), *range(3, 25, 3)})
    assert [r["step"] for r in result.records if r["kind"] == "valid"] == [6, 12, 18, 24]


def test_a_run_killed_twice_equals_the_straight_run(straight_run, trainer, read_run, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, workdir, killed_at = random.Random(seed), tmp_path / "run", []
    for low in (2, 13):
        process = trainer.start(workdir)
        wait_for_step(process, workdir, rng.randint(low, low + 4))
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        trainer.finish(process, code=-signal.SIGKILL)
        killed_at.append(logged_step(workdir))
    print(f"killed after steps {killed_at}")
    output, _ = trainer.finish(trainer.start(workdir))
    assert output.splitlines()[-1] == straight_run.output.splitlines()[-1]
    expected, got = read_run(straight_run.workdir), read_run(workdir)
    assert got.records == expected.records
    assert_same_state(got.last, expected.last)
    assert_same_state(got.best, expected.best)


@pytest.fixture(scope="module")
def stopped_run(trainer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    process = trainer.start(workdir)
    wait_for_step(process, workdir, 7)
    process.terminate()
    output, _ = trainer.finish(process)
    return workdir, output


def test_ctrl_c_saves_and_ends_by_the_signal(trainer, tmp_path):
    # A shell's background jobs, and what they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = trainer.start(tmp_path / "run")
    signal.signal(signal.SIGINT, before)
    wait_for_step(process, tmp_path / "run", 7)
    process.send_signal(signal.SIGINT)
    output, errors = trainer.finish(process, code=-signal.SIGINT)
    saved = max(int(p.name) for p in (tmp_path / "run" / "checkpoints" / "last").iterdir())
    assert f"stopped at step {saved}, saved; the same command goes on from there" in output
    assert f"stopping after step {saved}: saving" in errors
    assert "Traceback" not in errors


def test_a_run_goes_on_where_nobody_reads_its_output(trainer, straight_run, read_run, tmp_path):
    process = trainer.start(tmp_path / "run")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=500) == 0
    assert read_run(tmp_path / "run").records == read_run(straight_run.workdir).records


def test_a_terminated_run_says_so_and_goes_on(
    stopped_run, straight_run, trainer, read_run, tmp_path
):
    stopped, output = stopped_run
    saved = max(int(p.name) for p in (stopped / "checkpoints" / "last").iterdir())
    assert f"stopped at step {saved}, saved; the same command goes on from there" in output
    assert 7 <= saved < TOTAL
    workdir = shutil.copytree(stopped, tmp_path / "run")
    resumed, _ = trainer.finish(trainer.start(workdir))
    assert f"from the checkpoint of step {saved}: {TOTAL - saved} steps left\n" in resumed
    expected, got = read_run(straight_run.workdir), read_run(workdir)
    assert_same_state(got.last, expected.last)
    assert_same_state(got.best, expected.best)

    def untouched(records):
        """Without the window of training steps that was cut in two by the stop."""
        train = [record["step"] for record in records if record["kind"] == "train"]
        end = min(step for step in train if step > saved)
        cut = {saved, end} if saved not in boundaries else set()
        return [r for r in records if r["kind"] == "valid" or r["step"] not in cut]

    boundaries = {record["step"] for record in expected.records}
    assert untouched(got.records) == untouched(expected.records)


def test_a_run_goes_on_with_another_number_of_devices(
    stopped_run, straight_run, trainer, read_run, tmp_path
):
    workdir = shutil.copytree(stopped_run[0], tmp_path / "run")
    process = trainer.start(workdir, devices=2)
    output, _ = trainer.finish(process)
    assert "2 x cpu" in output
    expected, got = read_run(straight_run.workdir), read_run(workdir)
    for kind in ("last", "best"):
        a, b = getattr(got, kind), getattr(expected, kind)
        assert a.step == b.step
        np.testing.assert_allclose(
            a.params["head"]["linear"]["kernel"], b.params["head"]["linear"]["kernel"], atol=1e-3
        )
    for a, b in zip(got.records[-3:], expected.records[-3:], strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def changed(workdir, **changes):
    """A run's stored configuration with other values, by dotted name."""
    given = to_dict(run_files.read_config(workdir))
    for name, value in changes.items():
        *folders, last = name.split("__")
        entry = given
        for folder in folders:
            entry = entry[folder]
        assert last in entry
        entry[last] = value
    return from_dict(given)


def test_other_settings_are_refused_by_name(straight_run, monkeypatch):
    # As many devices as its mixup has groups.
    monkeypatch.setattr(
        session, "make_mesh", lambda train: sharding.make_mesh(train, jax.devices()[:4])
    )
    config = changed(
        straight_run.workdir,
        optimizer__learning_rate=0.5,
        model__dropout=0.0,
        modalities__m1__k=2,
        train__data_parallel=4,
    )
    before = sorted(p.name for p in straight_run.workdir.iterdir())
    with pytest.raises(CheckpointError) as error:
        session.train(config, straight_run.workdir)
    message = str(error.value)
    first, *lines = message.split("\n  ")
    assert "choose a new workdir" in first
    assert lines[:2] == ["modalities.m1.k 6 -> 2", "model.dropout 0.2 -> 0.0"]
    assert lines[2].startswith("optimizer.learning_rate")
    assert "data_parallel" not in message
    assert sorted(p.name for p in straight_run.workdir.iterdir()) == before


def test_other_data_is_refused(straight_run, tmp_path):
    workdir = shutil.copytree(straight_run.workdir, tmp_path / "run")
    record = run_files.read_data(workdir)
    write_json(workdir / "data.json", {**record, "fingerprint": "another"})
    config = run_files.read_config(workdir)
    with pytest.raises(CheckpointError, match=r"other settings; .* differs:\n  the data itself"):
        run_files.open_run(workdir, config, record)


def test_data_that_are_normalized_by_other_numbers_are_refused(straight_run, tmp_path):
    """Prepared elsewhere, sums may be rounded differently; a wrong digit is another training."""
    workdir = shutil.copytree(straight_run.workdir, tmp_path / "run")
    config, record = run_files.read_config(workdir), run_files.read_data(workdir)
    kind, shift, scale = (record["normalizer"][name] for name in ("kind", "shift", "scale"))
    for factor, refused in ((1 + 1e-7, False), (1.01, True)):
        moved = {
            "kind": kind,
            "shift": shift,
            "scale": {m: [factor * x for x in s] for m, s in scale.items()},
        }
        given = {**record, "normalizer": moved}
        with (
            pytest.raises(CheckpointError, match="the normalization of the data")
            if refused
            else nullcontext()
        ):
            run_files.open_run(workdir, config, given)


def test_checkpoints_without_their_configuration_are_nobody_s(straight_run, tmp_path):
    workdir = shutil.copytree(straight_run.workdir, tmp_path / "run")
    config, record = run_files.read_config(workdir), run_files.read_data(workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"found checkpoints without a config\.json.*restore"):
        run_files.open_run(workdir, config, {**record, "fingerprint": "another"})
    assert run_files.read_data(workdir) == record


def test_what_may_change_between_resumes(straight_run, tmp_path):
    workdir = shutil.copytree(straight_run.workdir, tmp_path / "run")
    config = changed(
        workdir,
        data__data_dir="elsewhere",
        data__num_threads=0,
        data__prefetch=1,
        train__keep=5,
        train__data_parallel=2,
        train__fsdp_parallel=2,
    )
    run_files.open_run(workdir, config, run_files.read_data(workdir))
    assert run_files.read_config(workdir) != config  # what it began with stays on record


def test_a_folder_without_a_run_or_with_a_broken_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"found no config\.json, expected a run folder"):
        run_files.read_config(tmp_path)
    (tmp_path / "data.json").write_text('{"half": ')
    with pytest.raises(CheckpointError, match=r"data.json: found no JSON"):
        run_files.read_data(tmp_path)


def test_a_run_folder_is_begun_with_what_it_needs(tmp_path):
    workdir = tmp_path / "deep" / "run"
    config = Config(task=TaskConfig(name="classification"))
    data = {"fingerprint": "f", "class_names": ["a"]}
    run_files.open_run(workdir, config, data)
    run_files.open_run(workdir, config, data)
    assert (run_files.read_config(workdir), run_files.read_data(workdir)) == (config, data)
    assert sorted(p.name for p in workdir.iterdir()) == ["config.json", "data.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_to(tmp_path, code):
    expected = r"metrics.jsonl: could not .*see that the disk has room"
    with pytest.raises(CheckpointError, match=expected), convert_disk_errors(tmp_path):
        raise OSError(code, os.strerror(code), "metrics.jsonl")
    with (
        pytest.raises(CheckpointError, match=r"command again$"),
        convert_disk_errors(tmp_path, outcome=""),
    ):
        raise OSError(code, os.strerror(code))
    with pytest.raises(ConnectionResetError), convert_disk_errors(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "of a socket")
