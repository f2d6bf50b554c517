"""How to train and how deep: mixup on and off, modalities hidden, layers before and after fusion.

    python -m sft_jax.sweep --config=configs/studies/training.py --workdir=runs/training

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. What came out:
docs/results.md.
"""

from sft_jax.config.smartwatch_studies import MISSING, study
from sft_jax.config.study import Setting


def get_study():
    layers = (
        Setting(
            f"layers {before}+{after}",
            {"model.num_pre_layers": before, "model.num_post_layers": after},
        )
        for before, after in ((1, 2), (2, 1), (3, 0), (0, 1), (0, 5), (1, 4))
    )
    return study(
        "training",
        "Mixup, hidden modalities, and layers before and after fusion",
        (
            Setting("layers 0+3"),
            Setting("mixup", {"mixup.mode": "any", "mixup.groups": 1}),
            Setting("hide", {"augment.hide": 0.2, "augment.gap": 0.5}),
            Setting("no mirror", {"augment.mirror_polar": (), "augment.mirror_axial": ()}),
            *layers,
        ),
        conditions=MISSING,
    )
