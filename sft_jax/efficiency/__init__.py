"""Measured and predicted cost."""
