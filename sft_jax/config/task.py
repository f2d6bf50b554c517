"""Settings of what is predicted."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The task.

    Attributes:
        name: Name of an entry of `tasks.TASKS`.
    """

    name: str = "classification"
