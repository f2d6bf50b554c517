"""CMU-MOSEI as in the paper (arXiv 2111.11992, table 2): vision, audio and text.

    python -m sft_jax.train --config=configs/mosei.py --workdir=runs/mosei

Needs `data/mosei_senti_data_noalign.pkl` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=mosei --fake_dir=data`. Tokens: 501 + 501 + 51 in block 1 and in the pooling
block, 1 + 7 + 7 + 1 = 16 in the 11 fused blocks. Costs 217,647 parameters and 0.205 GFLOP a sample
forward (`python -m sft_jax.benchmark --configs=configs/mosei.py`).
"""

from sft_jax.config.io import config_dict
from sft_jax.config.paper import mosei


def get_config():
    return config_dict(mosei())
