"""Sections of a report: one run, several runs, or a study."""
