"""Sequences of 7 to 29 frames: models side by side on Japanese Vowels.

    python -m sft_jax.sweep --config=configs/studies/vowels.py --workdir=runs/vowels

Needs the wheel of `aeon` in `data/`: `pip download --no-deps --dest data aeon==1.6.0`
(docs/data.md). What came out: docs/results.md.
"""

from pathlib import Path

from sft_jax.config.io import load, override
from sft_jax.config.smartwatch_studies import DENSE
from sft_jax.config.study import Condition, Setting, Study

CONFIG = Path(__file__).parents[1] / "japanese_vowels.py"


def get_study():
    # Nothing is chosen, so nothing is held out to choose by.
    base = override(load(CONFIG), {"data.options.valid_fraction": 0.0})
    steps = int(base.train.duration.value)
    return Study(
        name="vowels",
        title="Speakers by their vowels, from sequences of several lengths",
        protocol=(
            "UCI Japanese Vowels, the given files: 270 utterances for training and 370 of the same "
            f"nine speakers for testing. {steps} steps with the learning rate going to zero; the "
            "last parameters are judged. Widths and optimizer are those of the smartwatch study; "
            "nothing was tuned on this set."
        ),
        base=base,
        settings=(
            Setting("sft"),
            Setting("dense", DENSE),
            Setting("late", {"model.name": "late", **DENSE}),
            Setting("mbt", {"model.name": "mbt", **DENSE}),
        ),
        folds=(Setting("given"),),
        seeds=(0, 1, 2, 3, 4),
        conditions=(
            Condition("without low", missing=("low",)),
            Condition("without high", missing=("high",)),
            Condition("gaps of 50%", gap=0.5),
        ),
    )
