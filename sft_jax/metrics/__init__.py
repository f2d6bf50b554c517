"""Exact scores over a split, computed on the host in float64."""
