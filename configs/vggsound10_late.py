"""VGGSound-10 by late fusion: a transformer a modality, logits summed.

    python -m sft_jax.train --config=configs/vggsound10_late.py --workdir=runs/vggsound10_late

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 39 + 1201 + 39 in all 12 blocks, each
modality on its own. Costs 496,050 parameters and 3.088 GFLOP a sample forward (`python -m
sft_jax.benchmark --configs=configs/vggsound10_late.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(vggsound(num_classes=10, model="late"))
