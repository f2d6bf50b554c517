"""Trains a model: `python -m sft_jax.train --config=configs/x.py --workdir=runs/x`.

The same command goes on where an earlier one was stopped.
"""

import shlex
import sys

import jax

from sft_jax import cli
from sft_jax.config.io import from_dict
from sft_jax.training import session

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir("Folder of the run; resumed if it has one.")
_DEVICES = cli.define_devices(several_processes=True)


def main():
    """Trains, and says how it ended."""
    command = f"python -m sft_jax.train {shlex.join(sys.argv[1:])}"
    outcome = session.train(from_dict(_CONFIG.value), cli.path(_WORKDIR), command)
    if jax.process_index():
        return  # one process speaks for all
    if not outcome.finished:
        print(f"stopped at step {outcome.step}, saved; the same command goes on from there")
        return
    best = "" if outcome.best is None else f"; best {outcome.best:.4f} at step {outcome.best_step}"
    print(f"finished at step {outcome.step}{best}")


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
