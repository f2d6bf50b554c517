"""Checks of single settings, which raise a `ConfigError` that names the setting."""

import math

from sft_jax.types import ConfigError


def check_choice(name: str, value: str, choices: tuple[str, ...]):
    """Raises `ConfigError` unless the value of a setting is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name}: given {value!r}, expected one of {', '.join(choices)}")


def check_at_least(prefix: str, config: object, minimum: int | float, *names: str):
    """Raises `ConfigError` unless all named settings are finite and at least `minimum`."""
    for name in names:
        value = getattr(config, name)
        if not minimum <= value < math.inf:
            raise ConfigError(
                f"{prefix}.{name}: given {value}, expected at least {minimum}, finite"
            )


def check_fraction(prefix: str, config: object, *names: str):
    """Raises `ConfigError` unless all named settings are between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{prefix}.{name}: given {value}, expected between 0 and 1")
