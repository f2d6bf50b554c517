"""A process that runs commands of the package one after the other, which saves their start.

Each line of its input is `[command, [argument, ...]]` in JSON. Each is answered by a line
`[exit code, output]`, the output with what was written to stderr.
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def started(folder, **environment):
    """Starts such a process in a folder; yields a function from command and arguments to both."""
    given = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__],
        cwd=folder,
        env={**given, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(name, *arguments):
        process.stdin.write(json.dumps([name, arguments]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def run_command(name, arguments, before):
    """Exit code and output of a command, whose flags are those it defines and `before`."""
    from absl import flags

    flags.FLAGS.unparse_flags()
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    sys.argv, code, output = [name, *arguments], 0, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_module(f"sft_jax.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            output.write(f"{ended.code or ''}")
        except Exception:
            code = 1
            traceback.print_exc()
    return code, output.getvalue()


def main():
    """Answers lines until there are no more."""
    from absl import app, flags

    # Packages that the commands import define flags of their own, once.
    for module in ("api", "cli", "data.pipeline", "interop.artefacts.artefact_files"):
        importlib.import_module(f"sft_jax.{module}")
    app.define_help_flags()
    before = set(flags.FLAGS)
    answers = sys.stdout
    for line in sys.stdin:
        print(json.dumps(run_command(*json.loads(line), before)), file=answers, flush=True)


if __name__ == "__main__":
    main()
