"""Weights in, artefacts out."""
