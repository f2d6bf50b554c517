"""What to keep for a sixth of what dense fusion costs: chosen by subjects held out for that alone.

    python -m sft_jax.sweep --config=configs/studies/choice.py --workdir=runs/choice

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. What came out:
docs/results.md; `configs/studies/fusion.py` has the best of them beside the other models.
"""

from sft_jax.config.smartwatch_studies import DENSE, FIXED, study
from sft_jax.config.study import Setting


def get_study():
    def counting(pool, k, layers, **changes):
        return {
            "modalities.*.pool": pool,
            "modalities.*.k": k,
            "model.num_post_layers": layers,
            **changes,
        }

    def window(pool, steps, layers, **changes):
        return counting(pool, 0, layers, **{"modalities.*.window": steps, **changes})

    return study(
        "choice",
        "What a sixth of dense fusion's cost buys",
        (
            Setting("cls_topk 3 0+3"),
            Setting("dense 0+3", DENSE),
            Setting("channel_topk 1 0+2", counting("channel_topk", 1, 2)),
            Setting("channel_topk 2 0+2 fixed", counting("channel_topk", 2, 2, **FIXED)),
            Setting("channel_topk 3 0+1", counting("channel_topk", 3, 1)),
            Setting("merge 2 0+1", counting("merge", 2, 1)),
            Setting("max 25 0+2", window("max", 25, 2)),
            Setting("max 12 0+2 fixed", window("max", 12, 2, **FIXED)),
            Setting("max 8 0+1", window("max", 8, 1)),
            Setting("avg 8 0+1", window("avg", 8, 1)),
        ),
        valid_subjects=2,
    )
