"""Attention in Pallas kernels of a TPU."""
