import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sft_jax.config.io import to_dict
from sft_jax.config.run import Config, TrainConfig
from sft_jax.config.task import TaskConfig
from sft_jax.files.json_files import write_json
from sft_jax.runs import run_files
from sft_jax.training import processes
from sft_jax.training.processes import Processes
from sft_jax.types import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]
# As training stores it.
CONFIG = Config(task=TaskConfig(name="classification"))
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
ENVIRONMENT = {
    "JAX_COORDINATOR_ADDRESS": "h:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def requested(environ=(), coordinator=None, num=None, index=None, distributed=None):
    return processes.requested(coordinator, num, index, distributed, dict(environ))


@pytest.mark.parametrize(
    ("environ", "given"),
    [
        ({}, {}),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, {}),  # a shell of an allocation
        (SLURM, {"distributed": False}),
        (ENVIRONMENT, {"distributed": False}),
        ({}, {"coordinator": "h:1", "num": 1, "index": 0}),
    ],
)
def test_a_process_that_nobody_started_with_others_stays_alone(environ, given):
    assert requested(environ, **given) is None


@pytest.mark.parametrize(
    ("environ", "given", "expected"),
    [
        ({}, ("h:1", 4, 3), ("h:1", 4, 3, ())),
        (ENVIRONMENT, (), ("h:1", 4, 3, ())),
        (ENVIRONMENT, ("10.0.0.1:80", 8, 0), ("10.0.0.1:80", 8, 0, ())),
        ({}, (None, None, None, True), (None, None, None, ())),
        ({}, ("h:1", None, None, True), ("h:1", None, None, ())),
        (SLURM, (), (None, None, None, ())),
        (OPEN_MPI, (), (None, None, None, ())),
        # Two tasks a host: JAX gives each its share of the devices.
        (SLURM | {"SLURM_STEP_NUM_NODES": "2"}, (), (None, None, None, None)),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, (), (None, None, None, None)),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, (), (None, None, None, None)),
        (SLURM, ("h:1", 4, 3), ("h:1", 4, 3, ())),
    ],
)
def test_whom_to_join(environ, given, expected):
    coordinator, count, index, local_devices = expected
    assert requested(environ, *given) == Processes(
        coordinator=coordinator, count=count, index=index, local_devices=local_devices
    )


@pytest.mark.parametrize(
    ("environ", "given", "message"),
    [
        ({}, {"num": 2}, r"given only num_processes 2, .*add --coordinator \(or JAX_COORD"),
        ({}, {"coordinator": "h:1", "num": 2}, r"add --process_index \(or JAX_PROCESS_ID\)"),
        ({"JAX_PROCESS_ID": "1"}, {}, r"given only process_index 1, .*--coordinator .*--num_proc"),
        ({"JAX_NUM_PROCESSES": "two"}, {}, r"JAX_NUM_PROCESSES: given 'two' in the environment"),
        (ENVIRONMENT, {"index": 4}, r"process_index: given 4 of 4 processes, expected 0 to 3"),
        (ENVIRONMENT, {"index": -1}, r"process_index: given -1 of 4"),
        (ENVIRONMENT, {"num": 0}, r"num_processes: given 0, expected at least 1"),
        (ENVIRONMENT, {"coordinator": "10.0.0.1"}, r"given '10.0.0.1', expected host:port"),
        (ENVIRONMENT, {"coordinator": "h:99999"}, r"given 'h:99999', expected host:port"),
        ({}, {"num": 2, "distributed": False}, r"num_processes: given 2 with --nodistributed"),
        ({}, {"index": -1, "distributed": True}, r"process_index: given -1, expected at least 0"),
    ],
)
def test_what_is_half_given_or_wrong_says_what_to_add(environ, given, message):
    with pytest.raises(ConfigError, match=message):
        requested(environ, **given)


def test_one_process_is_not_initialised(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("jax.distributed.initialize was called")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    processes.join(requested(), heartbeat_timeout=100, startup_timeout=300)


def test_a_slice_that_was_not_joined_is_not_used(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"found a slice with 4 processes, .*--distributed"):
        processes.join(None, heartbeat_timeout=100, startup_timeout=300)


def test_nothing_to_detect_is_said(monkeypatch):
    def detect(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", detect)
    with pytest.raises(ConfigError, match=r"detects no TPU slice.*give --coordinator"):
        processes.join(requested(distributed=True), heartbeat_timeout=100, startup_timeout=300)


@pytest.fixture
def second(monkeypatch):
    """Makes this the second of two processes, for what needs no other one."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(run_files.multihost_utils, "sync_global_devices", lambda name: None)


def test_a_folder_that_hosts_do_not_share_is_refused(second, tmp_path):
    with pytest.raises(CheckpointError, match=r"process 1 does not find what process 0 wrote"):
        run_files.open_run(tmp_path / "run", CONFIG, {"fingerprint": "f"})
    assert not (tmp_path / "run").exists()


def test_a_process_with_other_settings_is_refused(second, tmp_path):
    write_json(tmp_path / "data.json", {"fingerprint": "f"})
    write_json(tmp_path / "config.json", to_dict(CONFIG))
    run_files.open_run(tmp_path, CONFIG, {"fingerprint": "f"})
    other = dataclasses.replace(CONFIG, train=TrainConfig(seed=1))
    with pytest.raises(CheckpointError, match=r"train.seed 0 -> 1"):
        run_files.open_run(tmp_path, other, {"fingerprint": "f"})


def test_errors_of_one_process_are_raised_as_they_are():
    with pytest.raises(ZeroDivisionError), processes.shutdown_on_exit():
        _ = 1 / 0


def test_ctrl_c_in_one_of_several_processes_is_one_line(second, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="1"), processes.shutdown_on_exit():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "process 1 of 2: interrupted\n"


# A verb that sums over all processes until it is ended.
VERB = """
import jax
from jax.experimental import multihost_utils
from sft_jax import cli

DEVICES = cli.define_devices(several_processes=True)


def main():
    print(jax.process_count(), jax.local_device_count(), flush=True)
    while True:
        multihost_utils.sync_global_devices("once more")


cli.run(main, devices=DEVICES)
"""


@pytest.fixture
def verbs(tmp_path):
    """Starts `VERB` with flags; what is left over is killed."""
    script, started = tmp_path / "verb.py", []
    script.write_text(VERB)

    def start(*flags):
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        process = subprocess.Popen(
            [sys.executable, str(script), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_others_end_when_one_falls_silent(verbs, free_port):
    """A host that hangs closes no connection, so only its heartbeats are missed."""
    flags = ("--cpu_devices=3", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    first, second = (
        verbs(*flags, f"--process_index={index}", "--heartbeat_timeout=10") for index in range(2)
    )
    assert {process.stdout.readline() for process in (first, second)} == {"2 3\n"}
    second.send_signal(signal.SIGSTOP)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == -signal.SIGABRT
    assert "stopped sending heartbeats" in errors
    # JAX's own words name no remedy.
    assert "process 0 of 2: was ended" in errors
    assert "start all of them again with the same commands" in errors


def test_processes_that_do_not_come_are_not_waited_for_for_ever(verbs, free_port):
    flags = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--process_index=0")
    process = verbs("--cpu_devices=1", *flags, "--startup_timeout=1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGABRT
    assert "DEADLINE_EXCEEDED" in errors


def test_a_wrong_flag_ends_without_a_traceback(verbs):
    process = verbs("--cpu_devices=1", "--num_processes=2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.startswith("ConfigError: processes: given only num_processes 2")
