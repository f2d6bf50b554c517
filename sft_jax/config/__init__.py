"""Every setting of a run, its default and its check, as frozen dataclasses."""
