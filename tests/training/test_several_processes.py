"""Runs of two and four processes on this machine, undisturbed, killed, stopped and frozen."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from sft_jax.training import session, sharding

TOTAL = 24


@pytest.fixture(scope="module")
def pod(trainer, free_port, tmp_path_factory):
    """Starts and ends the processes of a run; all that are left over are killed."""
    started, programs = [], tmp_path_factory.mktemp("programs")

    class Pod:
        compiled = programs

        def start(self, count, *command, **environment):
            """`command` is a verb and its flags, or a folder to train in and overrides."""
            flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
            flags.append(f"--compilation_cache={programs}")
            processes = []
            for index in range(count):
                own = (*flags, f"--process_index={index}")
                if isinstance(command[0], str):
                    process = trainer.run_module([*command, *own], **environment)
                else:
                    process = trainer.start(*command, flags=own, **environment)
                processes.append(process)
            started.extend(processes)
            return processes

        def finish(self, processes):
            return [trainer.finish(process) for process in processes]

        def outlive(self, processes, victim):
            """Waits for those that are left of a run that lost one; none of them succeeds."""
            left = [process for process in processes if process is not victim]
            # Who waits for the lost one outside of a step learns of it from missed heartbeats.
            errors = [process.communicate(timeout=500)[1] for process in left]
            assert all(process.returncode != 0 for process in left), errors
            return errors

    yield Pod()
    for process in started:
        process.kill()
        process.communicate()


def logged_step(workdir):
    """The newest step that training has written down, but for the line that it may be writing."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines()[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def wait_for_step(processes, workdir, step):
    """Until training has written down a record of `step` or later."""
    while logged_step(workdir) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.002)


def saved_steps(workdir):
    """The steps saved whole: a killed run may leave a folder that is only begun beside them."""
    names = (path.name for path in (workdir / "checkpoints" / "last").iterdir())
    return {int(name) for name in names if name.isdigit()}


def own_lines(output):
    """What we print; Gloo announces its connections on every process."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


def assert_same_losses(got, expected, steps):
    """Rounding grows from step to step; another batch, key or parameter would show in the first."""
    got, expected = ([r for r in run.records if r["step"] <= steps] for run in (got, expected))
    assert [(r["kind"], r["step"]) for r in got] == [(r["kind"], r["step"]) for r in expected]
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5 if i < 3 else 1e-3)
        assert a["top1"] == b["top1"]


def assert_close(got, expected):
    """But for the bias of the keys, whose gradient is zero: Adam blows up the rounding of that."""

    def compare(path, a, b):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("qkv_bias"):
            a, b = (np.delete(x, 1, axis=-3) for x in (a, b))  # [.., 3, h, e]
        np.testing.assert_allclose(a, b, atol=1e-4)

    jax.tree_util.tree_map_with_path(compare, got, expected)


@pytest.fixture(scope="module")
def undisturbed(pod, tmp_path_factory):
    """Two processes from start to end: folder and outputs."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return workdir, [output for output, _ in pod.finish(pod.start(2, workdir))]


def test_two_processes_train_as_one(undisturbed, straight_run, read_run):
    """Each reads its own rows; logs and validation are those of a single process."""
    workdir, (first, second) = undisturbed
    assert "2 x cpu, data 2, fsdp 1" in first
    assert f"finished at step {TOTAL}; best" in first
    assert own_lines(second) == []
    got = read_run(workdir)
    assert got.last.step == TOTAL
    assert_same_losses(got, read_run(straight_run.workdir), steps=12)


@pytest.fixture(scope="module")
def disturbed(pod, tmp_path_factory):
    """Two processes, of which one is killed, then (after a restart) one is told to stop."""
    workdir = tmp_path_factory.mktemp("disturbed") / "run"
    processes = pod.start(2, workdir)
    wait_for_step(processes, workdir, 8)  # the second epoch ends at step 10
    processes[1].kill()
    lost = pod.outlive(processes, processes[1])
    compiled = {path.name for path in pod.compiled.iterdir()}
    saved, reached = saved_steps(workdir), logged_step(workdir)
    processes = pod.start(2, workdir, JAX_DEBUG_LOG_MODULES="jax._src.compiler")
    # What the killed one wrote down after its checkpoint stays there until the next one starts.
    wait_for_step(processes, workdir, max(14, reached + 2))
    processes[1].send_signal(signal.SIGTERM)
    stopped = pod.finish(processes)
    stopped_at = shutil.copytree(workdir, workdir.parent / "stopped")
    pod.finish(pod.start(2, workdir))
    return workdir, lost, saved, compiled, stopped, stopped_at


@pytest.mark.slow
def test_the_others_end_when_one_is_killed(disturbed):
    _, (error,), saved, *_ = disturbed
    assert "process 0 of 2: Traceback" in error
    assert "another process is gone" in error
    assert max(saved) in range(3, TOTAL, 3)  # wherever the signal reached it


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_a_boundary(disturbed):
    *_, stopped, stopped_at = disturbed
    (first, _), (second, _) = stopped
    step = max(saved_steps(stopped_at))
    assert 14 <= step < TOTAL
    assert step % 2 == 0  # train.log_every, at which processes agree
    assert f"stopped at step {step}, saved; the same command goes on from there" in first
    assert own_lines(second) == []


@pytest.mark.slow
def test_killed_and_stopped_processes_end_as_undisturbed_ones(disturbed, undisturbed, read_run):
    got, expected = read_run(disturbed[0]), read_run(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, got.last, expected.last)
    jax.tree.map(np.testing.assert_array_equal, got.best, expected.best)


@pytest.mark.slow
def test_a_second_start_reads_compiled_programs(disturbed, pod):
    _, _, _, before, stopped, _ = disturbed
    (name,) = (name for name in before if name.startswith("jit_step-"))
    # On CPUs the other process's programs are of another topology, and only the first one writes.
    key = name.removesuffix("-cache")
    assert f"Persistent compilation cache hit for 'jit_step' with key '{key}'" in stopped[0][1]
    assert name in {path.name for path in pod.compiled.iterdir()}


@pytest.mark.slow
def test_four_processes_go_on_without_their_first_one(pod, straight_run, read_run, tmp_path):
    """The one that is killed is the coordinator; the others go on with parameters split in two."""
    workdir = tmp_path / "run"
    processes = pod.start(4, workdir)
    wait_for_step(processes, workdir, 8)
    processes[0].kill()
    pod.outlive(processes, processes[0])
    assert max(saved_steps(workdir)) < TOTAL
    (first, _), *others = pod.finish(pod.start(4, workdir, "train.fsdp_parallel=2"))
    assert "4 x cpu, data 2, fsdp 2" in first
    assert all(own_lines(output) == [] for output, _ in others)
    got, expected = read_run(workdir), read_run(straight_run.workdir)
    assert got.last.step == TOTAL
    assert_same_losses(got, expected, steps=12)
    assert_close(got.last.params, expected.last.params)


def test_two_processes_evaluate_as_one(pod, undisturbed, tmp_path, monkeypatch):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    command = ("sft_jax.evaluate", f"--workdir={workdir}")
    (first, _), (second, _) = pod.finish(pod.start(2, *command))
    assert "test split, 5 samples" in first
    assert own_lines(second) == []
    got = json.loads((workdir / "evaluation_test.json").read_text())
    rows = dict(np.load(workdir / "predictions_test.npz"))
    monkeypatch.setattr(
        session, "make_mesh", lambda train: sharding.make_mesh(train, jax.devices()[:1])
    )
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    alone = session.evaluate(workdir)
    for name in ("num_samples", "confusion", "step"):
        assert got[name] == alone.metrics[name]
    losses = (metrics["metrics"]["loss"]["value"] for metrics in (got, alone.metrics))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)
    assert rows.keys() == alone.predictions.keys()
    for name, values in alone.predictions.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(rows[name], values, atol=1e-5)
        else:
            np.testing.assert_array_equal(rows[name], values)
