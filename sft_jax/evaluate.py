"""Scores a run: `python -m sft_jax.evaluate --workdir=runs/x [--split=test]`."""

import jax
from absl import flags

from sft_jax import cli
from sft_jax.reports import example_recording
from sft_jax.reports.text_tables import format_table
from sft_jax.runs.example_file import save_example
from sft_jax.tasks.base import Scored, TableBlock
from sft_jax.training import session

_WORKDIR = cli.define_workdir()
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "What to score.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data are, if elsewhere by now.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", None, ["best", "last"], "Best, where there is one.")
_ABLATION = flags.DEFINE_boolean(
    "ablation", True, "Score it without each modality, too, for the report."
)
_DEVICES = cli.define_devices(several_processes=True)


def main():
    """Prints the metrics with their intervals and a row a class; keeps a recording to draw."""
    workdir, split = cli.path(_WORKDIR), _SPLIT.value
    opened, result, predictions = session.evaluate(
        workdir, split, _CHECKPOINT.value, _DATA_DIR.value, _ABLATION.value
    )
    if jax.process_index():
        return  # one process speaks and writes for all
    print(f"{split} split, {result['num_samples']} samples, step {result['step']}\n")
    scored = Scored(split=split, evaluation=result, answers={}, target=None)
    for block in opened.task.report({split: scored})[0].blocks:
        if isinstance(block, TableBlock):
            print(format_table(block.rows), end="\n\n")
    shown = example_recording.of_split(opened.source, split, predictions, opened.config.modalities)
    if shown is not None:
        save_example(workdir / "example.npz", shown)
    print(f"written: {workdir / f'evaluation_{split}.json'}, predictions and example beside it")


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
