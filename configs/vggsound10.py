"""VGGSound-10 as in the paper (arXiv 2111.11992, table 1): RGB, spectrogram and optical flow.

    python -m sft_jax.train --config=configs/vggsound10.py --workdir=runs/vggsound10

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 39 + 1201 + 39 in block 1 and in the
pooling block, 1 + 1 + 18 + 1 = 21 in the 11 fused blocks. Costs 297,490 parameters and 0.527 GFLOP
a sample forward (`python -m sft_jax.benchmark --configs=configs/vggsound10.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=10))
