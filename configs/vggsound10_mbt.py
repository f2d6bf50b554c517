"""VGGSound-10 by the bottleneck transformer (arXiv 2107.00135), four shared tokens.

    python -m sft_jax.train --config=configs/vggsound10_mbt.py --workdir=runs/vggsound10_mbt

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 39 + 1201 + 39 in blocks 1 and 2; 43 +
1205 + 43 in the other 10, 4 of them the bottleneck. Costs 496,050 parameters and 3.107 GFLOP a
sample forward (`python -m sft_jax.benchmark --configs=configs/vggsound10_mbt.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=10, model="mbt"))
