"""Trains a model: `python -m sft_jax.train --config=configs/x.py --workdir=runs/x`.

The same command goes on where an earlier one was stopped, also with a longer `train.duration`.
"""

import shlex
import signal
import sys

import jax
from absl import flags

from sft_jax import cli, console
from sft_jax.config.io import from_dict
from sft_jax.training import session
from sft_jax.training.loop import Outcome

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the run; resumed if it has one.")
_DATA = cli.define_data()
_EXTEND = flags.DEFINE_boolean(
    "extend", False, "Allow another train.duration to stretch the cosine schedule of a run."
)
_DEVICES = cli.define_devices(several_processes=True)


def main():
    """Trains, and says how it ended."""
    command = f"python -m sft_jax.train {shlex.join(sys.argv[1:])}"
    config = _DATA.relocated(from_dict(_CONFIG.value))
    outcome = session.train(config, _WORKDIR.value, command, extend=_EXTEND.value)
    if jax.process_index() == 0:  # one process speaks for all
        print(_end(outcome))
    # Several processes leave together, which one that is ended by a signal would not.
    if outcome.stopped_by in (signal.SIGINT, signal.SIGHUP) and jax.process_count() == 1:
        console.end_by(outcome.stopped_by)


def _end(outcome: Outcome) -> str:
    if not outcome.finished:
        return f"stopped at step {outcome.step}, saved; the same command goes on from there"
    best = "" if outcome.best is None else f"; best {outcome.best:.4f} at step {outcome.best_step}"
    if outcome.stopped_early:
        return f"stopped early at step {outcome.step} (train.patience){best}"
    return f"finished at step {outcome.step}{best}"


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
