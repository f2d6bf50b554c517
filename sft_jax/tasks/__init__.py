"""Tasks: what is predicted, with its loss, answers, scores and sections of a report.

`TASKS` is the only list of the tasks. All other code creates one by `from_source`, `from_run`,
`from_study` or `from_config`, and calls it through `base.Task`.
"""

from collections.abc import Mapping
from typing import Any

from sft_jax.config.run import Config, TaskConfig
from sft_jax.tasks.base import Metric, Task
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.tasks.classification_report import metric_rows
from sft_jax.types import CheckpointError, ConfigError

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
]

# Tasks by `config.task.name`; the constructors below are class methods of each.
TASKS: dict[str, Any] = {"classification": Classification}


def from_source(config: Config, info: Any) -> Task:
    """The task of a configuration on prepared data.

    Args:
        config: Configuration of the run; its `model.num_classes` may be 0.
        info: `data.records.DataInfo` of the source.

    Raises:
        ConfigError: There is no task of that name.
    """
    return _entry(config.task.name).from_source(config, info)


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
    name = record.get("base", {}).get("task", {}).get("name", TaskConfig.name)
    return _entry(name).from_study(record)


def _entry(name: str) -> Any:
    if name not in TASKS:
        raise ConfigError(
            f"task.name: given {name!r}, expected one of {', '.join(TASKS)}; change it"
        )
    return TASKS[name]
