"""The files that a run or a study leaves on disk: each module writes, reads and checks its own.

`run_files` has `config.json` and `data.json`, `metric_log` the training log, `evaluation_files` the
scores and predictions of a split, `example_file` one recording to draw, and `study_files` the
tables of a study. `read_run` and `read_study_folder` open a whole folder.
"""

from sft_jax.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "example_file": "Example load_example save_example",
        "metric_log": "read_metrics",
        "run_files": "read_config read_data",
        "run_folder": "Run is_run read_run",
        "study_folder": "StudyFolder is_study read_study_folder",
    },
)
