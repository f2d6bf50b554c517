"""Classifies arrays: `python -m sft_jax.predict --workdir=runs/x --input=x.npz --output=y.npz`."""

from absl import flags

from sft_jax import cli
from sft_jax.data.array_entries import load_entries
from sft_jax.training.predictor import load

_WORKDIR = cli.define_workdir()
_INPUT = cli.define_path(
    "input", "`.npz` file or directory of `.npy`, one a modality.", required=True
)
_OUTPUT = cli.define_output("output", "`.npz` file to write.", required=True)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", None, ["best", "last"], "Best, where there is one.")
_DEVICES = cli.define_devices()


def main():
    """Writes the predictions and prints a summary."""
    entries = load_entries(_INPUT.value)
    predictor = load(_WORKDIR.value, _CHECKPOINT.value)
    table = predictor.table(entries, str(_INPUT.value))
    for remark in table.remarks:
        print(remark)
    prediction = predictor.predict_table(table)
    prediction.save(_OUTPUT.value)
    print(f"{len(table)} samples: {predictor.task.summary(prediction.answers)}")
    print(f"written: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
