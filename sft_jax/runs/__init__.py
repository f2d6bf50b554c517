"""The files that a run or a study leaves on disk: each module writes, reads and checks its own.

`run_files` has `config.json` and `data.json`, `metric_log` the training log, `evaluation_files` the
scores and predictions of a split, `example_file` one recording to draw, and `study_files` the
tables of a study. `run_folder` and `study_folder` open a whole folder for a report.
"""
