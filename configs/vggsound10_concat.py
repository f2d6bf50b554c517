"""VGGSound-10 by early fusion: all tokens in one sequence, pooled after the first block.

    python -m sft_jax.train --config=configs/vggsound10_concat.py --workdir=runs/vggsound10_concat

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 39 + 1201 + 39 = 1279 in block 1, 1 + 33
= 34 in the other 11 (windows of 38). Costs 257,970 parameters and 0.314 GFLOP a sample forward
(`python -m sft_jax.benchmark --configs=configs/vggsound10_concat.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=10, model="concat"))
