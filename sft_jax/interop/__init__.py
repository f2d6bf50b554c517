"""Import of reference weights and recordings, export of trained models, and a PyTorch baseline."""
