"""A small learnable set of random sequences: two modalities, four classes, half a minute.

    python -m sft_jax.train --config=configs/synthetic.py --workdir=runs/synthetic

Needs nothing beside the package.
"""

from sft_jax.config.data import DataConfig, SyntheticOptions
from sft_jax.config.io import config_dict
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig


def get_config():
    return config_dict(
        Config(
            modalities=(
                ModalitySpec(name="m0", length=48, feature_dim=6, k=6),
                ModalitySpec(name="m1", length=96, feature_dim=4, k=6),
            ),
            model=ModelConfig(
                preset="modern", embed_dim=32, num_heads=4, num_pre_layers=1, num_post_layers=2
            ),
            data=DataConfig(source="synthetic", options=SyntheticOptions()),
            optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine"),
            train=TrainConfig(duration=Duration(10.0, "epochs"), batch_size=32),
        )
    )
