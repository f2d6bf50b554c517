"""VGGSound-10 from one modality, the spectrogram unless `model.options.modality` says another.

    python -m sft_jax.train --config=configs/vggsound10_unimodal.py --workdir=runs/unimodal

Needs `data/vgg_train.h5py` and `data/vgg_test.h5py` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=vggsound10 --fake_dir=data`. Tokens: 1201 in block 1, 1 + 18 = 19 in the 11
blocks behind the pool. Costs 172,770 parameters and 0.271 GFLOP a sample forward (`python -m
sft_jax.benchmark --configs=configs/vggsound10_unimodal.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.model import UnimodalOptions
from sft_jax.config.paper import vggsound


def get_config():
    return config_dict(
        vggsound(num_classes=10, model="unimodal", model_options=UnimodalOptions(modality="spect"))
    )
