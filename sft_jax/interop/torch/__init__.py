"""The model in PyTorch, as a baseline for speed. Needs the extra `torch`."""
