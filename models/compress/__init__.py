"""Quantization, and the gate a compressed model must pass."""
