"""Readers of what a run leaves behind."""

from tests.fuzz.harness import Reader

RUN_READERS: tuple[Reader, ...] = ()
