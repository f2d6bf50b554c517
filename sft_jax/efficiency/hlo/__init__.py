"""Cost of a compiled program, read off its text."""
