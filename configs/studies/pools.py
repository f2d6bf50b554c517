"""How to sparsify: every pool at three of 25 tokens, and from one token a modality to all.

    python -m sft_jax.sweep --config=configs/studies/pools.py --workdir=runs/pools

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. What came out:
docs/results.md.
"""

from sft_jax.config.smartwatch_studies import DENSE, study
from sft_jax.config.study import Setting

# The pools that were compared; adding a pool to the package does not change this study.
COUNTING = ("attn_topk", "attn_kmedoids", "attn_random", "random", "channel_topk", "merge")
WINDOWS = ("max", "avg", "attn_avg", "strided_random")


def get_study():
    counting = (Setting(pool, {"modalities.*.pool": pool}) for pool in COUNTING)
    window = {"modalities.*.k": 0, "modalities.*.window": 8}
    windows = (Setting(pool, {"modalities.*.pool": pool, **window}) for pool in WINDOWS)
    kept = (Setting(f"cls_topk {k}", {"modalities.*.k": k}) for k in (1, 2, 5, 10))
    pooled = (
        Setting(
            f"max {steps}", {"modalities.*.pool": "max", **window, "modalities.*.window": steps}
        )
        for steps in (2, 4, 25)
    )
    channels = (
        Setting(f"channel_topk {k}", {"modalities.*.pool": "channel_topk", "modalities.*.k": k})
        for k in (1, 10)
    )
    settings = (
        Setting("cls_topk 3"),
        *kept,
        Setting("none", DENSE),
        *counting,
        *channels,
        *windows,
        *pooled,
    )
    return study("pools", "Pools, and how many tokens they keep", settings)
