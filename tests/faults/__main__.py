"""Trains a tiny model again and again, injects faults, and counts what came of them.

    python -m tests.faults --kills=300 --jobs=2

Every trial is saved as it ends; the same command with the same file goes on where it was stopped.
"""

import os

# Before numpy and jax are imported: a process that is to be forked may have no threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import gc
import platform
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import jax

from tests.faults import table
from tests.faults.bench import Bench
from tests.faults.runner import Task, run_tasks
from tests.faults.trials import FAULTS, KILLS, titles
from tests.quick import QUICK


def main():
    """Runs what is still to be tried, and writes the table."""
    arguments = _arguments()
    flags = " ".join(f"--{name}={value}" for name, value in QUICK.items())
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_parallel_codegen_split_count=1"
    results = table.read(arguments.json)
    facts = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "seed": arguments.seed,
    }
    if results["trials"] and any(results[key] != value for key, value in facts.items()):
        sys.exit(f"{arguments.json}: holds results of other versions or another seed; remove it")
    results = {**facts, **results}
    gc.collect()
    gc.freeze()
    gc.disable()
    print(f"everything is written below {arguments.root}", flush=True)
    bench = Bench(arguments.root)
    bench.warm()
    print(f"a life takes {bench.seconds:.1f} s to its first checkpoint", flush=True)
    failed = _run(bench, arguments, results)
    text = table.table(results, titles())
    print(text)
    if arguments.page is not None:
        table.put(arguments.page, text)
    lost = table.total(results["trials"], list(titles()))["lost"]
    if not lost and not failed:
        shutil.rmtree(arguments.root)
    sys.exit(1 if lost or failed else 0)


def _run(bench: Bench, arguments: argparse.Namespace, results: dict) -> int:
    """Runs all tasks that are left; how many of them failed without a verdict."""
    failed, since, before = 0, time.monotonic(), results["seconds"]
    names = [name for name in arguments.only if name != "kill"]
    done = {trial["trial"] for trial in results["trials"]}
    tasks = [
        Task(name, number)
        for name in names
        for number in range(min(FAULTS[name].count, arguments.trials))
        if f"{name}/{number}" not in done
    ]
    goal = arguments.kills if "kill" in arguments.only else 0
    number = 0

    def source():
        """Kills until there are enough of them, and then whatever else is asked for."""
        nonlocal number
        while table.total(results["trials"], KILLS)["injected"] < goal:
            while f"kill/{number}" in done:
                number += 1
            yield Task("kill", number)
            number += 1
        yield from tasks

    for task, verdicts, error in run_tasks(bench, arguments.seed, source(), arguments.jobs):
        if error:
            failed += 1
            print(f"{task.name}: failed\n{error}", flush=True)
            continue
        for verdict in verdicts:
            verdict["note"] = table.anywhere(verdict["note"], bench.root, socket.gethostname())
        results["trials"] += [{"trial": task.name, **verdict} for verdict in verdicts]
        results["seconds"] = round(before + time.monotonic() - since, 1)
        table.write(arguments.json, results)
        for verdict in verdicts:
            counts = ", ".join(f"{verdict[name]} {name}" for name in table.COUNTS)
            print(f"{task.name}: {verdict['fault']}: {counts} {verdict['note']}", flush=True)
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="SIGKILLs to inject at least")
    parser.add_argument("--trials", type=int, default=100, help="of any other fault at most")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--seed", type=int, default=0, help="everything is drawn from it")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(FAULTS), help=", ".join(FAULTS)
    )
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"), help="results")
    parser.add_argument("--page", type=Path, help="page to put the table into")
    parser.add_argument("--root", type=Path, help="folder to work in; of runs that were lost")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(FAULTS):
        parser.error(f"--only: given {', '.join(unknown)}, expected some of {', '.join(FAULTS)}")
    if arguments.root is None:
        arguments.root = Path(tempfile.mkdtemp(prefix="faults-"))
    return arguments


if __name__ == "__main__":
    main()
