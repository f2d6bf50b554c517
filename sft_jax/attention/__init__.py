"""Softmax attention with key-padding masks: dense, streamed in tiles, and over a sparse pattern."""
