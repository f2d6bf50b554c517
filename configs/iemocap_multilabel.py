"""IEMOCAP, unaligned, as processed for MulT (arXiv 1906.00295): four emotions at once.

    python -m sft_jax.train --config=configs/iemocap_multilabel.py --workdir=runs/iemocap_multilabel

Needs `data/iemocap_data_noalign.pkl`; docs/data.md says where it comes from, and
`python -m sft_jax.prepare --fake=iemocap` writes a synthetic one to try the steps with. As
`configs/iemocap.py`, but one model predicts whether each of neutral, happy, sad and angry is
present, and the checkpoint with the highest mean average precision is kept. Not tuned: no score is
claimed.
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
                options=MultPickleOptions(path="data/iemocap_data_noalign.pkl"),
            ),
            optimizer=OptimizerConfig(schedule="cosine", weight_decay=0.01),
            train=TrainConfig(duration=Duration(20.0, "epochs"), batch_size=32, best_metric="mAP"),
        )
    )
