"""Every setting of a run, its default and its check, as frozen dataclasses.

`Config` is a run and `Study` a grid of runs. `load` reads a file of `configs/`, `override` changes
settings by dotted path, and `config_dict` is what a file of `configs/` returns.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "data": (
            "DataConfig ArraysOptions SmartwatchOptions SyntheticOptions MultPickleOptions "
            "MmsaPickleOptions VggsoundHdf5Options MultipleFeaturesOptions "
            "JapaneseVowelsOptions "
        ),
        "io": "config_dict from_dict load override to_dict",
        "modality": "ModalitySpec",
        "model": ("ModelConfig NoOptions UnimodalOptions LateOptions ConcatOptions MbtOptions"),
        "run": "Config",
        "settings": "describe_settings settings_text",
        "task": "ClassificationOptions MultilabelOptions RegressionOptions TaskConfig",
        "study": "Condition Setting Study load_study",
        "training": "AugmentConfig Duration MixupConfig OptimizerConfig TrainConfig",
    },
)
