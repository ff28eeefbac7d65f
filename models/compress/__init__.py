"""Quantization, and the gate that a compressed model must pass."""
