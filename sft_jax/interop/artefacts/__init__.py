"""Trained models as StableHLO and ONNX files."""
