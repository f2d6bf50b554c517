"""In processes of their own, which import nothing but the module."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BEGIN = """
import os, signal, sys
from sft_jax.console import interruptible, outliving_readers
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
"""


def start(code, **streams):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.Popen(command, env=environment, text=True, **streams)


TALKATIVE = """
with outliving_readers():
    sys.stdin.readline()
    for _ in range(3):
        print("x" * 10_000)
        print("y", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os.write(1, b"z")  # as a library of another language does
    open(os.environ["WHOLE"], "w").write("whole")
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_command_outlives_its_readers(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("WHOLE", str(tmp_path / "file"))
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    process = start(TALKATIVE, stdin=subprocess.PIPE, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_other_failures_of_the_output_are_not_hidden():
    with open("/dev/full", "w") as full:
        process = start(
            "with outliving_readers(): print('x', flush=True)", stdout=full, stderr=subprocess.PIPE
        )
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left on device" in errors


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("with interruptible(): signal.raise_signal(signal.SIGINT)", "\ninterrupted\n"),
        # While it cleans up after the first one.
        (
            """
with interruptible():
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
        print("cleaned up", file=sys.stderr)
""",
            "",
        ),
    ],
    ids=["once", "twice"],
)
def test_ctrl_c_ends_without_a_traceback(code, said):
    process = start(code, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGINT, said)
