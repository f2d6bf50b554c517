"""CMU-MOSI or CMU-MOSEI, unaligned, as processed for MMSA: sentiment in seven classes.

    python -m sft_jax.train --config=configs/mmsa.py --workdir=runs/mmsa

Needs `data/unaligned_50.pkl`; docs/data.md says where it comes from, and
`python -m sft_jax.prepare --fake=mmsa` writes a synthetic one to try the steps with. Modalities,
lengths and classes are taken from the file; every modality is pooled to an eighth of its tokens.
Not tuned: no score is claimed.
"""

from sft_jax.config.data import DataConfig, MmsaPickleOptions
from sft_jax.config.io import config_dict
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig


def get_config():
    return config_dict(
        Config(
            model=ModelConfig(
                preset="modern", embed_dim=64, num_heads=4, num_pre_layers=1, num_post_layers=2
            ),
            data=DataConfig(
                source="mmsa_pickle",
                options=MmsaPickleOptions(path="data/unaligned_50.pkl"),
            ),
            optimizer=OptimizerConfig(schedule="cosine", weight_decay=0.01),
            train=TrainConfig(duration=Duration(20.0, "epochs"), batch_size=32),
        )
    )
