"""Grids of runs that are trained together: folds, populations of runs, and their results."""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "folds": "Fold FoldReader",
        "results": "Results",
        "setting_runs": "train_setting",
    },
)
