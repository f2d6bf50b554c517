"""Exact scores over a whole split, computed on the host in float64."""
