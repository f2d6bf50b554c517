"""CMU-MOSEI as in `configs/mosei.py`, but its sentiment from -3 to 3 is predicted as a number.

    python -m sft_jax.train --config=configs/mosei_regression.py --workdir=runs/mosei_regression

Needs `data/mosei_senti_data_noalign.pkl` (docs/data.md); to try it without: `python -m
sft_jax.prepare --fake=mosei --fake_dir=data`. The checkpoint with the least mean absolute error is
kept. Not tuned: no score is claimed.
"""

import dataclasses

from sft_jax.config.io import config_dict
from sft_jax.config.paper import mosei
from sft_jax.config.task import TaskConfig


def get_config():
    config = mosei()
    return config_dict(
        dataclasses.replace(
            config,
            task=TaskConfig(name="regression"),
            model=dataclasses.replace(config.model, num_classes=0),
            train=dataclasses.replace(config.train, best_metric="mae"),
        )
    )
