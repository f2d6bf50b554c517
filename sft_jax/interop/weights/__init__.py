"""Weights of the public PyTorch implementation, to and from parameters of this package."""
