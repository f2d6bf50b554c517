"""Runs a study: `python -m sft_jax.sweep --config=configs/studies/fusion.py --workdir=runs/fusion`.

The same command goes on where it was stopped. Folds and seeds of a setting are trained together.
"""

import dataclasses

from absl import flags
from tqdm import tqdm

from sft_jax import cli
from sft_jax.config.study import load_study
from sft_jax.efficiency.model_costs import study_cost
from sft_jax.reports.sections.study_tables import StudyTables
from sft_jax.runs.study_folder import read_study_folder
from sft_jax.studies.folds import FoldReader
from sft_jax.studies.results import Results
from sft_jax.studies.setting_runs import train_setting
from sft_jax.tasks import from_study
from sft_jax.types import ConfigError

_CONFIG = cli.define_study()
_WORKDIR = cli.define_workdir("Folder of the study.")
_SETTINGS = flags.DEFINE_list("settings", [], "Settings to run; all of the study's if not given.")
_FOLDS = flags.DEFINE_list("folds", [], "Folds to run; all of the study's if not given.")
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds to run; all of the study's if not given.")
_RUNS = flags.DEFINE_integer(
    "runs", 32, "Runs trained together, in whole folds, and at least one fold.", lower_bound=1
)
_DATA = cli.define_data()
_DEVICES = cli.define_devices()


def main():
    """Runs what is missing, and prints a table for windows and one for recordings."""
    study = load_study(_CONFIG.value)
    study = dataclasses.replace(study, base=_DATA.relocated(study.base))
    part = study.only(_SETTINGS.value, _FOLDS.value, _seeds())
    workdir = _WORKDIR.value
    results = Results(workdir, study)
    read = FoldReader()
    together = max(1, _RUNS.value // len(part.seeds))
    for setting in part.settings:
        missing = results.missing(setting, part)
        for first in range(0, len(missing), together):
            folds = missing[first : first + together]
            total = int(study.config(setting, folds[0], part.seeds[0]).train.duration.value)
            runs = len(folds) * len(part.seeds)
            title = f"{setting.name}, {runs} runs"
            with tqdm(total=total, desc=title, unit="step", dynamic_ncols=True) as bar:
                trained = train_setting(part, setting, folds, bar.update, read)
            results.add(setting, trained, study_cost)
    study_folder = read_study_folder(workdir)
    metrics = from_study(study_folder.record).metrics
    print(StudyTables(study_folder, metrics).scores_text())


def _seeds() -> list[int]:
    given = _SEEDS.value
    if not all(seed.isdecimal() for seed in given):
        raise ConfigError(f"--seeds: given {','.join(given)}, expected whole numbers")
    return list(map(int, given))


if __name__ == "__main__":
    cli.run(main, devices=_DEVICES)
