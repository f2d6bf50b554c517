"""How to fuse: SFT beside the models it is compared with, at equal width, on unseen subjects.

    python -m sft_jax.sweep --config=configs/studies/fusion.py --workdir=runs/fusion

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. What came out:
docs/results.md.
"""

from sft_jax.config.smartwatch_studies import CHOSEN, DENSE, FIXED, MISSING, study
from sft_jax.config.study import Setting


def get_study():
    alone = {"model.name": "unimodal", "model.options.window": 8}
    return study(
        "fusion",
        "Fusion models at equal width",
        (
            Setting("sft"),
            Setting("dense", DENSE),
            Setting("mbt", {"model.name": "mbt", **DENSE}),
            Setting("late", {"model.name": "late", **DENSE}),
            Setting("concat", {"model.name": "concat", "model.options.window": 8, **DENSE}),
            Setting("attn_topk", {"modalities.*.pool": "attn_topk"}),
            Setting("fixed", FIXED),
            Setting("accelerometer", {"model.options.modality": "accelerometer", **alone}),
            Setting("gyroscope", {"model.options.modality": "gyroscope", **alone}),
            Setting("sft chosen", CHOSEN),
            Setting("mult", {"model.name": "mult", **DENSE}),
        ),
        conditions=MISSING,
    )
