"""Attention in Pallas kernels for TPUs."""
