"""Weights from and artefacts for other frameworks."""
