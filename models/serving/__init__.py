"""Serves an ONNX file."""
