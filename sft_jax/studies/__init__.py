"""Grids of runs that are trained together: folds, populations of runs, and their results."""
