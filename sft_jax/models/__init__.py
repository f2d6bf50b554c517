"""The network's parts, the sparse fusion model, and the registry of models."""
