"""Readers and writers of files that may be damaged or hostile, with checksums and locks."""
