"""Tasks: what is predicted, with its loss, its answers, its scores and its part of a report.

`TASKS` is the only place that names the tasks there are; everything else makes one with
`from_source`, `from_run` or `from_config` and calls it through `base.Task`.
"""

from collections.abc import Mapping
from typing import Any

from sft_jax.config.run import Config
from sft_jax.tasks.base import Metric, Task
from sft_jax.tasks.classification import Classification
from sft_jax.types import ConfigError

__all__ = ["TASKS", "Metric", "Task", "from_config", "from_run", "from_source"]

# By `config.task.name`; each has the constructors below as class methods.
TASKS: dict[str, Any] = {"classification": Classification}


def from_source(config: Config, info: Any) -> Task:
    """The task of a configuration on prepared data.

    Args:
        config: Configuration of the run; what the data decide may be left open.
        info: `data.records.DataInfo` of the source.

    Raises:
        ConfigError: There is no task of that name.
    """
    return _entry(config).from_source(config, info)


def from_run(config: Config, data: Mapping[str, Any]) -> Task:
    """The task of a run, from its configuration and the content of its `data.json`.

    Raises:
        ConfigError: There is no task of that name.
    """
    return _entry(config).from_run(config, data)


def from_config(config: Config) -> Task:
    """The task of a configuration alone, to train on made-up data; it cannot score.

    Raises:
        ConfigError: There is no task of that name.
    """
    return _entry(config).from_config(config)


def _entry(config: Config) -> Any:
    if config.task.name not in TASKS:
        raise ConfigError(
            f"task.name: given {config.task.name!r}, expected one of {', '.join(TASKS)}; change it"
        )
    return TASKS[config.task.name]
