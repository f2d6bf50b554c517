"""VGGSound-100 as in the paper (arXiv 2111.11992, table 1): RGB, spectrogram and optical flow.

    python -m sft_jax.train --config=configs/vggsound100.py --workdir=runs/vggsound100

Needs `data/vgg100_train.h5py` and `data/vgg100_test.h5py` (docs/data.md); to try it without:
`python -m sft_jax.prepare --fake=vggsound100 --fake_dir=data`. Tokens: 39 + 1201 + 39 in block 1
and in the pooling block, 1 + 1 + 18 + 1 = 21 in the 11 fused blocks. Costs 301,180 parameters and
0.527 GFLOP a sample forward (`python -m sft_jax.benchmark --configs=configs/vggsound100.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=100))
