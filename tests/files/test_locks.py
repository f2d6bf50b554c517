import errno
import fcntl
import os
import subprocess
import sys
import threading

import jax
import pytest

from sft_jax.files.locks import locked
from sft_jax.types import CheckpointError

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "train.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_training_is_refused_by_the_name_of_the_first(tmp_path, holder):
    with (
        pytest.raises(CheckpointError, match=r"process 7 on elsewhere works in this folder.*wait"),
        locked(tmp_path),
    ):
        pytest.fail("two at once")
    assert (tmp_path / "train.lock").read_text() == "process 7 on elsewhere"


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / "train.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path, holder):
    threading.Timer(0.1, holder.stdin.close).start()
    with locked(tmp_path, wait=True):
        assert holder.wait() == 0
        assert (tmp_path / "train.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_is_given_back_also_after_an_error(tmp_path):
    folder = tmp_path / "new" / "run"
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    with locked(folder), pytest.raises(CheckpointError), locked(folder):
        pytest.fail("two at once")


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    with locked(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with locked(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys, code):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    entered = False
    with locked(tmp_path):
        entered = True
    assert entered
    assert "has no locks" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"file/run: cannot be written to .*another workdir"),
        locked(tmp_path / "file" / "run"),
    ):
        pytest.fail("no folder")
