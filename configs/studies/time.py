"""The same subjects at another time: the temporal folds of the study that published the recordings.

    python -m sft_jax.sweep --config=configs/studies/time.py --workdir=runs/time

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. What came out:
docs/results.md.
"""

from sft_jax.config.smartwatch_studies import CHOSEN, DENSE, study
from sft_jax.config.study import Setting


def get_study():
    return study(
        "time",
        "Known subjects, unseen time",
        (Setting("sft"), Setting("dense", DENSE), Setting("sft chosen", CHOSEN)),
        held_out="time",
    )
