"""Checks of single settings, which raise a `ConfigError` that names the setting."""

import math

from sft_jax.types import ConfigError


def check_choice(name: str, value: str, choices: tuple[str, ...]):
    """Raises `ConfigError` unless `value` is one of `choices`.

    Args:
        name: Name of the setting in the message.
        value: Value to check.
        choices: Values that are allowed.
    """
    if value not in choices:
        raise ConfigError(f"{name}: given {value!r}, expected one of {', '.join(choices)}")


def check_at_least(prefix: str, config: object, minimum: int | float, *names: str):
    """Raises `ConfigError` unless every named setting is finite and at least `minimum`.

    Args:
        prefix: Path of `config` in the message, such as `model`.
        config: Dataclass that holds the settings.
        minimum: Smallest allowed value.
        *names: Attributes of `config` to check.
    """
    for name in names:
        value = getattr(config, name)
        if not minimum <= value < math.inf:
            raise ConfigError(
                f"{prefix}.{name}: given {value}, expected at least {minimum}, finite"
            )


def check_fraction(prefix: str, config: object, *names: str):
    """Raises `ConfigError` unless every named setting is between 0 and 1.

    Args:
        prefix: Path of `config` in the message, such as `train`.
        config: Dataclass that holds the settings.
        *names: Attributes of `config` to check.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{prefix}.{name}: given {value}, expected between 0 and 1")
