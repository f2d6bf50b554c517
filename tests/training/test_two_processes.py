import socket

import pytest

# The same verb, after this process has joined the others.
LAUNCHER = """
import sys
import jax
address, count, index, *arguments = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, int(count), int(index))
sys.argv = ["train", *arguments]
from sft_jax import cli, train
cli.run(train.main)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_train_as_one(straight_run, trainer, read_run, tmp_path):
    """Each reads its own rows; parameters, logs and validation are those of a single process."""
    address, workdir = f"127.0.0.1:{free_port()}", tmp_path / "run"
    processes = [
        trainer.start(
            workdir,
            "train.duration=12 steps",
            launcher=("-c", LAUNCHER, address, "2", str(index)),
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        )
        for index in range(2)
    ]
    try:
        outputs = [trainer.finish(process)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert "2 x cpu, data 2, fsdp 1" in outputs[0]
    got = read_run(workdir)
    expected = [r for r in read_run(straight_run.workdir).records if r["step"] <= 12]
    assert got.last.step == 12
    assert [(r["kind"], r["step"]) for r in got.records] == [
        (r["kind"], r["step"]) for r in expected
    ]
    # Rounding grows from step to step; another batch, key or parameter would show in the first.
    for i, (a, b) in enumerate(zip(got.records, expected, strict=True)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5 if i < 3 else 1e-3)
        assert a["top1"] == b["top1"]
