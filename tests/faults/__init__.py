"""Injects faults into real training: `python -m tests.faults`, docs/faults.md."""
