"""Seven shoulder exercises from a smartwatch's accelerometer and gyroscope, on unseen subjects.

    python -m sft_jax.train --config=configs/smartwatch.py --workdir=runs/smartwatch

Needs the recordings in the `seglearn` package: `pip install 'sft_jax[demo]'`. Reached 83.5 % of
windows and 89.3 % of recordings of the two test subjects (`make demo`), in under six minutes on
two shared x86 cores.
"""

from sft_jax.config.data import DataConfig, SmartwatchOptions
from sft_jax.config.io import config_dict
from sft_jax.config.modality import ModalitySpec
from sft_jax.config.run import (
    AugmentConfig,
    Config,
    Duration,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config():
    sensors = ("accelerometer", "gyroscope")
    return config_dict(
        Config(
            # A token is a tenth of a second; ten of the fifty are kept.
            modalities=tuple(
                ModalitySpec(
                    name=name, length=250, feature_dim=3, tokenizer="patch", patch=(5, 3), k=10
                )
                for name in sensors
            ),
            model=ModelConfig(
                preset="modern",
                embed_dim=48,
                num_heads=4,
                num_pre_layers=1,
                num_post_layers=2,
                dropout=0.1,
            ),
            data=DataConfig(
                source="smartwatch_exercises",
                options=SmartwatchOptions(window=250, step=50),
                normalization="rms",
            ),
            augment=AugmentConfig(rotate=sensors, rotation_degrees=30.0, jitter=0.05, scale=0.1),
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
                weight_decay=0.05,
                schedule="cosine",
                warmup=Duration(5.0, "epochs"),
            ),
            train=TrainConfig(
                duration=Duration(30.0, "epochs"),
                batch_size=64,
                label_smoothing=0.1,
                best_metric="top1",
            ),
        )
    )
