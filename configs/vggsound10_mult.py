"""VGGSound-10 by the crossmodal transformer (arXiv 1906.00295).

    python -m sft_jax.train --config=configs/vggsound10_mult.py --workdir=runs/vggsound10_mult

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 39, 1201, 39, each attending to both
others in 1 crossmodal block and, twice as wide, to itself in 11 more. Costs 2,944,290 parameters
and 7.396 GFLOP a sample forward (`python -m sft_jax.benchmark
--configs=configs/vggsound10_mult.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=10, model="mult"))
