"""Predictions from an ONNX file."""
