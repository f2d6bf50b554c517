"""Reports of runs and studies as HTML and Markdown, with their figures."""
