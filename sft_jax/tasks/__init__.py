"""Tasks: what is predicted, with its loss, its answers, its scores and its part of a report."""
