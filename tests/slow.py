"""Matrices of tests of which the corners run every time, and the rest by `make slow`."""

from collections.abc import Iterable

import pytest


def corners(values: Iterable, *every_time) -> list:
    """Values of a parameter, where all but those named are marked as slow."""
    values = list(values)
    unknown = [value for value in every_time if value not in values]
    assert not unknown, f"{unknown} are none of {values}"
    return [
        pytest.param(value, marks=() if value in every_time else pytest.mark.slow)
        for value in values
    ]
