"""Tasks: what is predicted, with its loss, answers, scores and sections of a report.

`TASKS` is the only list of the tasks. All other code creates one by `from_source`, `from_run`,
`from_study` or `from_config`, and calls it through `base.Task`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sft_jax.config.run import Config
from sft_jax.config.task import TaskConfig
from sft_jax.tasks.base import Metric, Task
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.tasks.classification_report import metric_rows
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.regression import Regression
from sft_jax.types import CheckpointError, ConfigError, Target

__all__ = [
    "METRICS",
    "TASKS",
    "Metric",
    "Task",
    "from_config",
    "from_run",
    "from_source",
    "from_study",
    "metric_rows",
    "required_data",
    "resolve",
]

# Tasks by `config.task.name`; the constructors below are class methods of each.
TASKS: dict[str, Any] = {
    "classification": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
}


def resolve(config: Config, info: Any) -> TaskConfig:
    """The task settings of a configuration, with the task that the data choose for `auto`.

    Args:
        config: Configuration of the run.
        info: `data.records.DataInfo` of the source.

    Raises:
        ConfigError: There is no task of that name, or the data have no targets for it.
    """
    fitting = [name for name, task in TASKS.items() if task.fits(info)]
    if config.task.name == "auto" and fitting:
        return TaskConfig(name=fitting[0])
    if not _entry(config.task.name).fits(info):
        raise ConfigError(
            f"task.name: given {config.task.name!r} for data that have targets for "
            f"{', '.join(fitting) or 'no task'}, expected one of these; change it, or add "
            "targets to the data"
        )
    return config.task


def from_source(
    config: Config, info: Any, targets: Callable[[Target], tuple[np.ndarray, np.ndarray]]
) -> Task:
    """The task of a configuration on prepared data.

    Args:
        config: Configuration of the run with a resolved task; its `model.num_classes` may be 0.
        info: `data.records.DataInfo` of the source.
        targets: Function that reads a target `[n, ...]` of the training split, and the weights.

    Raises:
        ConfigError: There is no task of that name, or its options do not fit the data.
    """
    return _entry(config.task.name).from_source(config, info, targets)


def from_run(config: Config, data: Mapping[str, Any]) -> Task:
    """The task of a run, from its configuration and the content of its `data.json`.

    Raises:
        ConfigError: There is no task of that name.
        CheckpointError: The content lacks an entry that the task requires.
    """
    missing = [name for name in required_data(config) if name not in data]
    if missing:
        raise CheckpointError(
            f"data.json: found no {', '.join(missing)}, expected what task {config.task.name!r} "
            "writes there; restore the file, or train into a new workdir"
        )
    return _entry(config.task.name).from_run(config, data)


def required_data(config: Config) -> tuple[str, ...]:
    """Entries of `data.json` that the task of a run requires."""
    return tuple(_entry(config.task.name).required_data)


def from_config(config: Config) -> Task:
    """The task of a configuration without data, for measurements; it cannot score.

    Raises:
        ConfigError: There is no task of that name.
    """
    return _entry(config.task.name).from_config(config)


def from_study(record: Mapping[str, Any]) -> Task:
    """The task of a study, from the content of its `study.json`; it cannot score.

    Raises:
        ConfigError: There is no task of that name.
    """
    base = record.get("base", {}).get("task", {}).get("name", TaskConfig.name)
    name = record.get("task", base)
    return _entry(name).from_study(record)


def _entry(name: str) -> Any:
    # Without data, `auto` is the task that most sources are for.
    name = next(iter(TASKS)) if name == "auto" else name
    if name not in TASKS:
        raise ConfigError(
            f"task.name: given {name!r}, expected one of {', '.join(TASKS)}; change it"
        )
    return TASKS[name]
