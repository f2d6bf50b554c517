"""CMU-MOSEI, unaligned, in the layout of MulT (arXiv 1906.00295): six emotions at once.

    python -m sft_jax.train --config=configs/mosei_emotions.py --workdir=runs/mosei_emotions

Needs `data/mosei_emotions_data_noalign.pkl`, a file of labels `[n, 1, 7]` or `[n, 6]` that
docs/data.md describes; `python -m sft_jax.prepare --fake=mosei_emotions` writes a synthetic one to
try the steps with. One model predicts whether each of happy, sad, anger, surprise, disgust and fear
is present, and the checkpoint with the highest mean average precision is kept. Not tuned: no score
is claimed.
"""

from sft_jax.config.data import DataConfig, MultPickleOptions
from sft_jax.config.io import config_dict
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig
from sft_jax.config.task import TaskConfig


def get_config():
    return config_dict(
        Config(
            task=TaskConfig(name="multilabel"),
            model=ModelConfig(
                preset="modern", embed_dim=64, num_heads=4, num_pre_layers=1, num_post_layers=2
            ),
            data=DataConfig(
                source="mult_pickle",
                options=MultPickleOptions(path="data/mosei_emotions_data_noalign.pkl"),
            ),
            optimizer=OptimizerConfig(schedule="cosine", weight_decay=0.01),
            train=TrainConfig(duration=Duration(20.0, "epochs"), batch_size=32, best_metric="mAP"),
        )
    )
