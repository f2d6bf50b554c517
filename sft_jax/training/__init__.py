"""Losses, optimizer, sharding, the compiled step, checkpoints, and the loop.

`Trainer` puts model, optimizer and step together; `train` and `evaluate` run a whole configuration
in a folder; `load` opens a trained model for prediction.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "loop": "Outcome",
        "predictor": "Prediction Predictor load",
        "session": "Evaluation Session evaluate train",
        "trainer": "Trainer",
    },
)
