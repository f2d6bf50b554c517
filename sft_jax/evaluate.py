"""Scores a run: `python -m sft_jax.evaluate --workdir=runs/x [--split=test]`."""

import jax
from absl import flags

from sft_jax import api, cli
from sft_jax.reports.text_tables import format_table
from sft_jax.tasks.base import Scored
from sft_jax.tasks.blocks import TableBlock

_WORKDIR = cli.define_workdir()
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "What to score.")
_DATA = cli.define_data()
_CHECKPOINT = flags.DEFINE_enum("checkpoint", None, ["best", "last"], "Best, where there is one.")
_ABLATION = flags.DEFINE_boolean(
    "ablation", True, "Score it without each modality, too, for the report."
)
_DEVICES = cli.define_devices(several_processes=True)


def main():
    """Prints the metrics with their intervals, and the scores of every class."""
    workdir, split = _WORKDIR.value, _SPLIT.value
    opened, result, _ = api.evaluate(
        workdir, split, _CHECKPOINT.value, ablation=_ABLATION.value, **_DATA.places()
    )
    if jax.process_index():
        return  # the main process prints for all
    print(f"{split} split, {result['num_samples']} samples, step {result['step']}\n")
    scored = Scored(split=split, evaluation=result, answers={}, target=None)
    for block in opened.task.report({split: scored})[0].blocks:
        if isinstance(block, TableBlock):
            print(format_table(block.rows), end="\n\n")
    print(f"written: {workdir / f'evaluation_{split}.json'}, predictions and example beside it")


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
