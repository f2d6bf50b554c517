"""Figures of runs, studies, plans and measurements."""
