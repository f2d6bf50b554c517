"""Your own arrays: an `.npz` file, or a directory of `.npy`, with one array a modality.

    python -m sft_jax.train --config=configs/arrays.py --config.data.options.path=my.npz \
        --workdir=runs/mine

Entries are `<modality>` `[n, t, f]` (or `[n, t]` integer ids), `label` `[n]`, and optionally
`mask/<modality>` or `length/<modality>`, `id`, `group`, `split`. Modalities, lengths and
classes are taken from the file; every modality is pooled to an eighth of its tokens.
"""

from sft_jax.config.data import ArraysOptions, DataConfig
from sft_jax.config.io import config_dict
from sft_jax.config.run import Config, Duration, ModelConfig, OptimizerConfig, TrainConfig


def get_config():
    return config_dict(
        Config(
            model=ModelConfig(
                preset="modern", embed_dim=64, num_heads=4, num_pre_layers=1, num_post_layers=2
            ),
            data=DataConfig(source="arrays", options=ArraysOptions()),
            optimizer=OptimizerConfig(schedule="cosine", weight_decay=0.01),
            train=TrainConfig(duration=Duration(20.0, "epochs"), batch_size=32),
        )
    )
