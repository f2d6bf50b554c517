"""The model in PyTorch, to compare speed with. Needs the extra `torch`."""
