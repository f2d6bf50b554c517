"""Comparison with recorded reference numbers."""
