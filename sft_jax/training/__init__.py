"""Losses, optimizer, sharding, the compiled step, checkpoints, and the loop."""
