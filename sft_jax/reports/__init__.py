"""HTML and Markdown reports of runs and studies, with their figures."""
