"""Devices and processes that are not what they were: another number of them, one dead, one hung."""

import dataclasses
import random
import signal
import socket
import time
from pathlib import Path

from sft_jax.training import processes, session
from tests.faults.bench import Bench, End, checkpoints, differences, finish, until_saved
from tests.faults.lives import Ended, Life, settle_devices
from tests.faults.verdict import Verdict, what_is_wrong

COUNTS = ((8, 2, 4), (8, 8, 8), (2, 4, 8), (4, 8, 2))
# Reductions add in another order, and what that rounds grows from step to step.
LOSS_BOUND, PARAMETER_BOUND = 1e-3, 1e-3
HEARTBEAT = 10  # seconds
SAYS_SO = "another process is gone: see what it said last, then start all of them again"


def counts_change(bench: Bench, rng: random.Random, folder: Path, number: int) -> list[Verdict]:
    """Killed twice, and started again each time with another number of devices."""
    workdir, counts = folder / "run", COUNTS[number % len(COUNTS)]
    straight, expected = bench.undisturbed(
        "devices", lambda run: finish(bench.train(run, devices=8))
    )
    done = 0
    for count in counts[:-1]:
        done += rng.randrange(4, 30)
        until_saved(bench.train(workdir, devices=count), workdir, done).wait()
    last = bench.train(workdir, devices=counts[-1]).wait()
    note = " to ".join(str(count) for count in counts)
    if set(counts) == {8}:
        wrong = what_is_wrong(bench, workdir, last, expected)
    elif last.code:
        wrong = f"the last start ended with {last.code}: {last.last_words}"
    else:
        wrong = "; ".join(_apart(bench.end(workdir), expected))
        distance = bench.distance(workdir, straight)
        if distance > PARAMETER_BOUND:
            wrong += f"; parameters are {distance:.2g} apart"
        note += f": parameters within {distance:.1e}"
    verdict = {"lost": 1, "note": f"{note}: {wrong}"} if wrong else {"survived": 1, "note": note}
    return [Verdict(fault="devices", **verdict)]


def _apart(got: End, expected: End) -> list[str]:
    """Records whose losses differ by more than rounding explains."""
    names = [[(r["kind"], r["step"]) for r in end.records] for end in (got, expected)]
    if names[0] != names[1]:
        return ["other records"]
    return [
        f"step {a['step']}: {a['kind']} loss {a['loss']} instead of {b['loss']}"
        for a, b in zip(got.records, expected.records, strict=True)
        if abs(a["loss"] - b["loss"]) > LOSS_BOUND * abs(b["loss"])
    ][:2]


def one_dies(bench: Bench, rng: random.Random, folder: Path, number: int) -> list[Verdict]:
    """One of two processes is killed."""
    return _one_of_two(bench, rng, folder, number % 2, signal.SIGKILL, "process_dies")


def one_hangs(bench: Bench, rng: random.Random, folder: Path, number: int) -> list[Verdict]:
    """One of two processes is frozen."""
    return _one_of_two(bench, rng, folder, number % 2, signal.SIGSTOP, "process_hangs")


def _one_of_two(
    bench: Bench, rng: random.Random, folder: Path, victim: int, number: signal.Signals, fault: str
) -> list[Verdict]:
    workdir = folder / "run"

    def undisturbed(run):
        for life in _pod(bench, run):
            finish(life)

    _, expected = bench.undisturbed("two_processes", undisturbed)
    lives = _pod(bench, workdir)
    goal = rng.randrange(10, 60)
    while lives[0].poll() is None and max(checkpoints(workdir, "last"), default=0) < goal:
        time.sleep(0.005)
    lives[victim].send(number)
    try:
        left = lives[1 - victim].wait(120)
    except TimeoutError as error:
        left = None
        wrong = f"the other waits for ever: {error}"
    lives[victim].kill()
    lives[victim].wait()
    if left is not None:
        left = _in_full(left, _log(bench, workdir, 1 - victim))
        wrong = _unclear(left) or _restarted(bench, workdir, expected)
    if wrong:
        return [Verdict(fault=fault, lost=1, note=wrong)]
    note = next(line for line in left.said.splitlines() if SAYS_SO in line)
    return [Verdict(fault=fault, refused=1, note=note)]


def _in_full(left: Ended, log: Path) -> Ended:
    """With what is said for a process that was ended, a moment later (`processes.join`)."""
    said, limit = left.said, time.monotonic() + 10
    while SAYS_SO not in said and time.monotonic() < limit:
        time.sleep(0.05)
        said = log.read_text(errors="replace")
    return dataclasses.replace(left, said=said)


def _log(bench: Bench, workdir: Path, index: int) -> Path:
    return bench.log(workdir.with_name(f"process{index}"))


def _unclear(left: Ended) -> str:
    if not left.code:
        return "the other ended as if nothing had happened"
    if SAYS_SO in left.said:
        return ""
    return f"the other ended with {left.code} and no word of it: {left.last_words}"


def _restarted(bench: Bench, workdir: Path, expected: End) -> str:
    ends = [life.wait() for life in _pod(bench, workdir)]
    failed = [ended for ended in ends if ended.code]
    if failed:
        return f"both started again: ended with {failed[0].code}: {failed[0].last_words}"
    return "; ".join(differences(bench.end(workdir), expected))


def _pod(bench: Bench, workdir: Path) -> list[Life]:
    """Two processes that train as one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    def act(index: int):
        import jax

        settle_devices(1, bench.root / "programs_of_two")
        pod = processes.Processes(
            coordinator=f"127.0.0.1:{port}", count=2, index=index, local_devices=()
        )
        with processes.shutdown_on_exit():
            processes.join(pod, HEARTBEAT, 120)
            session.train(bench.config, workdir)
            jax.distributed.shutdown()

    return [Life(lambda index=index: act(index), _log(bench, workdir, index)) for index in range(2)]
