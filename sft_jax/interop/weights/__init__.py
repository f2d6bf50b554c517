"""Conversion between weights of the public PyTorch implementation and parameters."""
